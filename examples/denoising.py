# %% [markdown]
# # Denoising an image by its patches
#
# Every 7 x 7 patch of a noisy image is written with two atoms of a dictionary that was learned from
# the noisy patches themselves; the overlapping patches are averaged. It follows scikit-learn's
# example of image denoising, with its coder beside ours on the same dictionary.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_sample_image
from sklearn.decomposition import MiniBatchDictionaryLearning, SparseCoder
from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d

import deepl0_kernels as dk

SIDE, ATOMS, M = 7, 100, 2
clean = load_sample_image("china.jpg").mean(2)[100:196, 300:396].astype("float32") / 255
noisy = clean + 0.1 * np.random.default_rng(0).standard_normal(clean.shape).astype("float32")


def psnr(image: np.ndarray) -> float:
    return float(-10 * np.log10(((image - clean) ** 2).mean()))


patches = extract_patches_2d(noisy, (SIDE, SIDE)).reshape(-1, SIDE * SIDE)
mean = patches.mean(1, keepdims=True)
x = patches - mean
print(f"{len(x):,} patches; noisy image: {psnr(noisy):.2f} dB")


def denoised(estimate: np.ndarray) -> np.ndarray:
    shape = (-1, SIDE, SIDE)
    image: np.ndarray = reconstruct_from_patches_2d((estimate + mean).reshape(shape), clean.shape)
    return image


# %% [markdown]
# ## scikit-learn: online learning with an l1 penalty, OMP

# %%
learner = MiniBatchDictionaryLearning(ATOMS, alpha=0.3, batch_size=256, max_iter=5, random_state=0)
atoms = learner.fit(x[::4]).components_.astype("float32")
atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
coder = SparseCoder(atoms, transform_algorithm="omp", transform_n_nonzero_coefs=M)
theirs = denoised(coder.transform(x) @ atoms)
print(f"scikit-learn, OMP:                  {psnr(theirs):.2f} dB")

# %% [markdown]
# ## Ours: the same OMP on the same atoms, and a dictionary learned for m = 2

# %%
signals, D = torch.from_numpy(x), torch.from_numpy(atoms.T.copy())
same = dk.solvers.omp(signals, D, m=M)
print(
    f"the same atoms, our OMP:            {psnr(denoised(dk.decode(same.code, D).numpy())):.2f} dB"
)

learned = dk.solvers.learn_dictionary(signals[::4].contiguous(), ATOMS, method="mod", m=M, epochs=6)
own = dk.solvers.omp(signals, learned.D, m=M)
ours = denoised(dk.decode(own.code, learned.D).numpy())
print(f"MOD dictionary, our OMP:            {psnr(ours):.2f} dB")

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 3))
shown = (("clean", clean), ("noisy", noisy), ("scikit-learn", theirs), ("MOD, OMP", ours))
for axes, (title, image) in zip(panels, shown, strict=True):
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set_title(f"{title}, {psnr(image):.1f} dB" if title != "clean" else title)
    axes.axis("off")
plt.show()
