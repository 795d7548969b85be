# %% [markdown]
# # Compressed sensing: error against the number of stages
#
# Signals of 128 entries, 6 of them nonzero, are measured 48 times. Encoders of K stages are trained
# to recover them, and compared with as many iterations of hard thresholding, and with pursuits that
# iterate until they converge.

# %%
import torch
from matplotlib import pyplot as plt

import deepl0_kernels as dk

N, P, M = 48, 128, 6
generator = torch.Generator().manual_seed(0)
A = torch.nn.functional.normalize(torch.randn(N, P, generator=generator), dim=0)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Measurements [size, N], and the sparse signals [size, P]."""
    support = torch.rand(size, P, generator=generator).topk(M).indices
    values = torch.randn(size, M, generator=generator)
    values = values.sign() * (0.5 + values.abs())
    a = torch.zeros(size, P).scatter_(1, support, values)
    return a @ A.T, a


def nmse(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    """In dB."""
    return 10 * ((estimate - truth).square().sum() / truth.square().sum()).log10().item()


x_test, a_test = batch(2000)


# %%
def trained(stages: int) -> dk.nn.DeepMSparseEncoder:
    torch.manual_seed(0)
    encoder = dk.nn.DeepMSparseEncoder.from_dictionary(A, M, num_stages=stages, tied=stages < 2)
    steps = 300
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, a = batch(256)
        loss = (encoder(x) - a).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return encoder.eval()


# %%
stages = (1, 2, 4, 6)
curves: dict[str, list[float]] = {"trained encoder": [], "IHT": []}
for k in stages:
    encoder = trained(k)
    with torch.no_grad():
        curves["trained encoder"].append(nmse(encoder(x_test), a_test))
    iterated = dk.solvers.iht_m(x_test, A, M, max_iter=k).dense
    curves["IHT"].append(nmse(iterated, a_test))
print("NMSE in dB      " + "".join(f"K = {k:<7}" for k in stages))
for name, values in curves.items():
    print(f"{name:<16}" + "".join(f"{value:<11.2f}" for value in values))

limits = {
    "IHT, converged": dk.solvers.iht_m(x_test, A, M).dense,
    "OMP": dk.solvers.omp(x_test, A, M).dense,
    "HTP": dk.solvers.htp(x_test, A, M).dense,
    "CoSaMP": dk.solvers.cosamp(x_test, A, M).dense,
}
for name, estimate in limits.items():
    print(f"{name:<16}{nmse(estimate, a_test):.2f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.4))
for name, values in curves.items():
    axes.plot(stages, values, "o-", label=name)
for name, color in (("OMP", "C2"), ("HTP", "C3")):
    axes.axhline(nmse(limits[name], a_test), ls="--", color=color, label=f"{name}, to the end")
axes.set(xlabel="stages, or iterations", ylabel="NMSE in dB")
axes.legend()
plt.show()
