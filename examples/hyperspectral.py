# %% [markdown]
# # Hyperspectral pixels
#
# Pixels of Indian Pines (200 bands, 16 classes of land) are written with few nonnegative atoms, so
# that a code reads as a mixture. `DEEPL0_DATA` names the folder of the scene; without it the loader
# says where to get it.

# %%
import torch
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression

import deepl0_kernels as dk
from deepl0_kernels import scenes

scene = scenes.indian_pines()
pixels = scene.x.reshape(-1, scene.x.shape[-1])
labels = scene.y.reshape(-1)
x, y = pixels[labels > 0], labels[labels > 0]
x = x / x.norm(dim=1, keepdim=True)  # brightness is no property of the land
print(f"{len(x):,} labelled pixels of {x.shape[1]} bands, {int(y.max())} classes")

# %% [markdown]
# ## A nonnegative dictionary, and mixtures of at most five atoms

# %%
learned = dk.solvers.learn_dictionary(x, 48, method="mod", m=5, epochs=4, positive=True)
code = dk.solvers.omp(x, learned.D, m=5, positive=True).code
x_hat = dk.decode(code, learned.D)
angle = torch.nn.functional.cosine_similarity(x, x_hat).clamp(max=1).acos()
print(f"median spectral angle with five atoms: {angle.rad2deg().median():.2f} degrees")

# %% [markdown]
# ## What a linear classifier makes of the codes
#
# A tenth of the pixels is for training, at random, as is usual for this scene; it flatters whoever
# looks at neighbours, which nobody does here.

# %%
train = torch.rand(len(x), generator=torch.Generator().manual_seed(0)) < 0.1
for name, features in (("bands", x), ("codes", code.to_dense())):
    features = features / features.std()
    model = LogisticRegression(C=100, max_iter=300).fit(features[train], y[train])
    print(f"{name}: {100 * model.score(features[~train], y[~train]):.1f} % right")

# %%
used = (code.to_dense() > 0).sum(0).argsort(descending=True)[:5]
figure, axes = plt.subplots(figsize=(7, 3))
for unit in used:
    axes.plot(learned.D[:, unit], label=f"atom {int(unit)}")
axes.set(xlabel="band", title="the five atoms that most pixels use")
axes.legend()
plt.show()
