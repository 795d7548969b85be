"""What every floor does to half types between stages: z is rounded as soon as it is decided."""

from __future__ import annotations

import torch

import deepl0_kernels as dk

HALF_TYPES = (torch.float16, torch.bfloat16)
ENCODERS = ("encode_top_m", "encode_l0", "encode_top_m_factored", "encode_l0_factored")


def check_rounding(encoder: str, dtype: torch.dtype, device: str) -> None:
    """The first z is u, odd and of one bit more than the type has, rounded: u - 1. The second is
    u - z, 1 of a rounded z and 0 of u itself. The gradient of S (D) is the sum of the first z of
    three rows (-2 times it), which is seen to be that of rounded ones; all other sums are exact."""
    a, b = {torch.float16: (64.0, 32.0), torch.bfloat16: (16.0, 16.0)}[dtype]
    factored = encoder.endswith("factored")
    x, W = torch.tensor([[a, 1, 0]]).repeat(3, 1), torch.tensor([[b, 1, 2], [0, 0, 0]])
    of_z = torch.tensor([[0, 0], [0, 0], [1, 0]] if factored else [[-1, 0], [0, 0]])
    x, W, of_z = (t.to(dtype).to(device).requires_grad_() for t in (x, W, of_z))
    matrices = dict(S=None, D=of_z) if factored else dict(S=of_z)
    if encoder.startswith("encode_top_m"):
        z = dk.encode_top_m(x, W, m=1, num_stages=2, **matrices).to_dense()
    else:
        z = dk.encode_l0(x, W, theta=0.5, num_stages=2, **matrices)
    assert z.tolist() == [[1.0, 0.0]] * 3
    (grad,) = torch.autograd.grad(z[:, 0].sum(), of_z)
    assert grad[of_z != 0].item() == 3 * a * b * (-2 if factored else 1)
