"""The fully connected encoder that the paper compares with."""

from __future__ import annotations

from torch import nn

from ..ops import checks


class BaselineEncoder(nn.Sequential):
    """Three fully connected ReLU layers of width p, dropout with keep probabilities 0.9, 0.9, 0.5.

    Args:
        in_features: n. code_size: p.
        readout: add a linear layer p -> p. The paper describes none, and without it no entry of the
            code can be negative, which half of a sparse code's nonzeros are.

    ``encoder(x)``: [..., n] -> [..., p]. 2 p (n + 2 p) flops a sample. Errors beyond those of the
    sizes are those of :class:`torch.nn.Linear`. Source: Wang, Ling, Huang 2016.

    Example:
        >>> dk.nn.BaselineEncoder(16, 32, readout=True)(torch.randn(8, 16)).shape
        torch.Size([8, 32])
    """

    def __init__(self, in_features: int, code_size: int, readout: bool = False) -> None:
        checks.integer("in_features", in_features, 1)
        checks.integer("code_size", code_size, 1)
        layers: list[nn.Module] = []
        width = in_features
        for keep in (0.9, 0.9, 0.5):
            layers += [nn.Linear(width, code_size), nn.ReLU(), nn.Dropout(1 - keep)]
            width = code_size
        if checks.boolean("readout", readout):
            layers.append(nn.Linear(code_size, code_size))
        super().__init__(*layers)

    def reset_parameters(self) -> None:
        """Those of every linear layer."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
