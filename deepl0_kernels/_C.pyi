from collections.abc import Callable
from typing import Any

from torch import Tensor

def build_info() -> dict[str, Any]: ...
def active_isa() -> str: ...
def mask(ctx: Any, *positions: int) -> int: ...
def wanted(bits: int, *grads: Tensor) -> tuple[Tensor | None, ...]: ...

class Native:
    def __new__(
        cls, name: str, address: int, kinds: str, results: int, otherwise: Callable[..., Any]
    ) -> Native: ...
    def __call__(self, *args: Any) -> Any: ...

class AtOnce:
    def __new__(
        cls,
        name: str,
        kinds: str,
        dims: int,
        public: bool,
        otherwise: Callable[[tuple, Exception | None], Any],
        kernels: dict,
        kernel_of: Callable[..., Any],
        formulas: dict[str, Callable],
        last: list,
    ) -> AtOnce: ...
    def __call__(self, *args: Any) -> Any: ...

class Formula:
    def __new__(
        cls,
        inputs: int,
        results: int,
        saves: bool,
        setup: Callable,
        backward: Callable,
        isolated: Callable,
    ) -> Formula: ...
    def forward(self, ctx: Any, *args: Any) -> Any: ...
    def backward(self, ctx: Any, *grads: Tensor | None) -> tuple: ...

class Plan:
    def __new__(
        cls,
        weights: tuple[Tensor | None, ...],
        held: tuple[Tensor | None, ...],
        served: tuple[Tensor | None, ...],
    ) -> Plan: ...
    def encode_top_m(self, *args: Any) -> tuple[Tensor, Tensor] | bool | None: ...
    def encode_l0(self, *args: Any) -> Tensor | bool | None: ...
    def holds(self, *weights: Tensor | None) -> bool: ...
    @property
    def nbytes(self) -> int: ...
