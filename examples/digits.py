# %% [markdown]
# # Digits, end to end
#
# A dictionary is learned from digits, their optimal 16-sparse codes are found by iterations, and an
# encoder of two stages is trained to predict them. Then it codes digits that it has never seen.

# %%
import torch
from matplotlib import pyplot as plt

import deepl0_kernels as dk
from deepl0_kernels import training

torch.manual_seed(0)
digits = dk.datasets.mnist_subset()
x, _ = dk.datasets.preprocess(digits.x[:4000])  # 16 x 16, mean 0, variance 1
test, _ = dk.datasets.preprocess(digits.x_test[:1000])
M, P = 16, 128

# %% [markdown]
# ## The dictionary, and optimal codes

# %%
learned = dk.solvers.learn_dictionary(x, P, m=M, epochs=4)
problem = training.MSparse(m=M)
optimal, optimal_test = problem.optimal(x, learned.D).dense, problem.optimal(test, learned.D).dense
print(f"dictionary {tuple(learned.D.shape)}, {learned.dead_atoms} atoms unused")

figure, panels = plt.subplots(4, 12, figsize=(9, 3))
for axes, atom in zip(panels.flat, learned.D.T, strict=False):
    axes.imshow(atom.reshape(16, 16), cmap="gray")
    axes.axis("off")
plt.show()

# %% [markdown]
# ## The encoder
#
# It starts as two iterations of hard thresholding, and is trained on the training digits' codes.

# %%
encoder = problem.encoder(learned.D, num_stages=2)


def error(code: torch.Tensor) -> float:
    """Distance to the optimal codes, relative, in %."""
    return 100 * float((code - optimal_test).norm() / optimal_test.norm()) ** 2


with torch.no_grad():
    print(f"two iterations:  {error(encoder(test)):.2f} %")
training.fit_to_codes(encoder, x, optimal, epochs=8, batch_size=64, lr=1e-3, clip=1.0, seed=0)
with torch.no_grad():
    print(f"two stages:      {error(encoder(test)):.2f} %")
ten = dk.solvers.iht_m(test, learned.D, M, max_iter=10).dense
print(f"ten iterations:  {error(ten):.2f} %")

# %% [markdown]
# ## What sixteen atoms say

# %%
with torch.no_grad():
    shown = dk.decode(encoder.encode(test[:8]), learned.D)
figure, panels = plt.subplots(2, 8, figsize=(9, 2.4))
for column in range(8):
    for row, image in enumerate((test[column], shown[column])):
        panels[row, column].imshow(image.reshape(16, 16), cmap="gray")
        panels[row, column].axis("off")
plt.show()
