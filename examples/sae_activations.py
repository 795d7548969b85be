# %% [markdown]
# # A sparse autoencoder on real activations
#
# Vectors of the residual stream of a small language model (all-MiniLM-L6-v2, layer 3, 384 wide) are
# written with 16 of 1,024 units. `DEEPL0_DATA` names the folder of `minilm_activations.npz`;
# `deepl0 sae activations` writes such vectors of your own text.

# %%
import os
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from deepl0_kernels import sae

torch.manual_seed(0)
file = Path(os.environ["DEEPL0_DATA"]) / "minilm_activations.npz"
train, held_out = sae.Activations.open(f"{file}:train"), sae.Activations.open(f"{file}:test")
print(f"{len(train):,} vectors to train on, {len(held_out):,} held out")

# %% [markdown]
# ## One stage: a TopK autoencoder

# %%
model = sae.SparseAutoencoder(384, 1024, m=16)
history = sae.fit(model, train, steps=200, batch=512, lr=2e-3)
one = sae.evaluate(model, held_out)
print(f"one stage:  FVU {one.fvu:.4f}, L0 {one.l0:.1f}")

# %% [markdown]
# ## Two stages
#
# The residual goes through the same weights once more: 8 entries after the first stage, 16 in the
# end. Before it is trained on it may be worse.

# %%
deep = model.deepen(2)
print(f"deepened:   FVU {sae.evaluate(deep, held_out).fvu:.4f}")
sae.fit(deep, train, steps=100, batch=512, lr=1e-3)
two = sae.evaluate(deep, held_out)
print(f"two stages: FVU {two.fvu:.4f}, L0 {two.l0:.1f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.semilogy(history[:, 2])
left.set(xlabel="step", ylabel="FVU of the batch", title="training, one stage")
density = two.fired.float() / two.vectors
right.hist(density.clamp(min=1e-4).log10().numpy(), bins=40)
right.set(xlabel="log10 of the share of vectors", ylabel="units", title="how often units fire")
plt.show()
