"""Parameters and form of a sparse autoencoder: what it is made of, before what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..nn import initial
from ..ops import checks
from ..ops.encode_factored import entries_of_stages
from ..ops.plan import Planned

SELECTIONS = ("top_m", "threshold", "relu")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_T = TypeVar("_T", bound="Autoencoder")


def growing(m: int, num_stages: int) -> list[int]:
    """Entries of stages that grow evenly to m."""
    return [math.ceil(m * k / num_stages) for k in range(1, num_stages + 1)]


class Autoencoder(Planned):
    """W, D, biases, theta and options; see :class:`SparseAutoencoder`."""

    def __init__(
        self,
        in_features: int,
        code_size: int,
        m: int | Sequence[int] | None = None,
        *,
        selection: str = "top_m",
        positive: bool = True,
        num_stages: int = 1,
        apply_b_dec_to_input: bool = True,
        normalize: str = "none",
        scale_by_norms: bool = False,
        flatten_heads: bool = False,
        theta: float = 0.01,
        sigma: float = 0.2,
    ) -> None:
        super().__init__()
        n = self.in_features = checks.integer("in_features", in_features, 1)
        p = self.code_size = checks.integer("code_size", code_size, 1)
        checks.one_of("selection", selection, SELECTIONS)
        checks.one_of("normalize", normalize, NORMALIZATIONS)
        self.selection, self.normalize = selection, normalize
        self.num_stages = checks.integer("num_stages", num_stages, 1)
        self.positive = checks.boolean("positive", positive)
        self.apply_b_dec_to_input = checks.boolean("apply_b_dec_to_input", apply_b_dec_to_input)
        self.scale_by_norms = checks.boolean("scale_by_norms", scale_by_norms)
        self.flatten_heads = checks.boolean("flatten_heads", flatten_heads)
        self.m = self._entries(m)
        if scale_by_norms and (num_stages > 1 or selection != "top_m"):
            raise ValueError(
                "scale_by_norms must be False without 'top_m' or with several stages, got True "
                f"with selection={selection!r}, num_stages={num_stages}"
            )
        if selection != "top_m" and not positive:
            raise ValueError(f"positive must be True with selection={selection!r}, got False")
        self._theta = checks.positive("theta", theta)
        self.sigma = float(checks.sigma(sigma))
        self.metadata: dict[str, Any] = {}
        self.source = ""
        self.W = nn.Parameter(torch.empty(p, n))
        self.bias = nn.Parameter(torch.empty(p))
        self.D = nn.Parameter(torch.empty(p, n).t())
        self.b_dec = nn.Parameter(torch.empty(n))
        self.theta: nn.Parameter | None
        if selection == "threshold":
            self.theta = nn.Parameter(torch.empty(p))
        else:
            self.register_parameter("theta", None)
        self.reset_parameters()

    def _entries(self, m: int | Sequence[int] | None) -> tuple[int, ...]:
        """m of every stage; none without "top_m"."""
        if self.selection != "top_m":
            if m is not None:
                raise ValueError(f"m must be None with selection={self.selection!r}, got {m!r}")
            return ()
        if m is None:
            raise ValueError("m must be given with selection='top_m', got None")
        entries = entries_of_stages(m, self.num_stages)
        return tuple(checks.integer("m", one, 1, self.code_size, "code_size") for one in entries)

    @classmethod
    def from_weights(
        cls: type[_T],
        W: Tensor,
        D: Tensor,
        bias: Tensor | None = None,
        b_dec: Tensor | None = None,
        theta: Tensor | None = None,
        **options: Any,
    ) -> _T:
        """An autoencoder of given weights, taken over without a copy where they lie right.

        Args:
            W: [p, n]. D: [n, p], best stored by columns. bias: [p], None: 0. b_dec: [n], None: 0.
            theta: [p] with selection="threshold", else None.

        ``options`` are the keyword arguments of the class.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit, and as in the class.
        """
        checks.floating("W", W, 2)
        p, n = W.shape
        given = {
            "W": (W, (p, n)),
            "D": (D, (n, p)),
            "bias": (W.new_zeros(p) if bias is None else bias, (p,)),
            "b_dec": (W.new_zeros(n) if b_dec is None else b_dec, (n,)),
        }
        if options.get("selection") == "threshold":
            if theta is None:
                raise ValueError("theta must be given with selection='threshold', got None")
            given["theta"] = (theta, (p,))
        elif theta is not None:
            raise ValueError(
                f"theta must be None without selection='threshold', got {type(theta).__name__}"
            )
        for name, (tensor, shape) in given.items():
            checks.like(name, tensor, "W", W)
            checks.has_shape(name, tensor, shape, "[n, p]" if name == "D" else "of W's sizes")
        with torch.device("meta"):
            self = cls(n, p, **options)
        for name, (tensor, _) in given.items():
            tensor = tensor.detach()
            tensor = tensor.t().contiguous().t() if name == "D" else tensor.contiguous()
            setattr(self, name, nn.Parameter(tensor))
        if self.D.untyped_storage().data_ptr() == self.W.untyped_storage().data_ptr():
            self.D = nn.Parameter(self.D.detach().t().clone().t())  # tied weights
        return self

    def reset_parameters(self) -> None:
        """Random unit atoms, W = D', biases 0, and theta as given to the class."""
        device = initial.device_of_draws(self.W)
        atoms = torch.randn(self.code_size, self.in_features, device=device)
        atoms /= atoms.norm(dim=1, keepdim=True)
        initial.assign(self, "D", atoms.t())
        initial.assign(self, "W", atoms)
        for name in ("bias", "b_dec"):
            initial.assign(self, name, torch.zeros(getattr(self, name).shape, device=device))
        if self.theta is not None:
            initial.assign(self, "theta", torch.full(self.theta.shape, self._theta, device=device))

    def options(self) -> dict[str, Any]:
        """The keyword arguments that make an autoencoder of this form; numbers and words alone."""
        own = dict(
            selection=self.selection,
            positive=self.positive,
            num_stages=self.num_stages,
            apply_b_dec_to_input=self.apply_b_dec_to_input,
            normalize=self.normalize,
            scale_by_norms=self.scale_by_norms,
            flatten_heads=self.flatten_heads,
            sigma=self.sigma,
        )
        if self.selection == "top_m":
            own["m"] = self.m[0] if len(set(self.m)) == 1 else list(self.m)
        return own
