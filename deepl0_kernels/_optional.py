"""Dependencies that only some commands need, imported when they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str, extra: str = "demo") -> ModuleType:
    """Import ``module``, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {module.split('.')[0]}: pip install 'deepl0-kernels[{extra}]'",
            name=error.name,
        ) from None


def progress_bar(
    iterable, description: str, *, show: bool, total: int | None = None, initial: int = 0
):
    """``iterable`` behind a tqdm bar on standard error, or bare; ``initial`` were done before."""
    if not show:
        return iterable
    tqdm = require("tqdm", "a progress bar (progress=True)")
    return tqdm.tqdm(iterable, desc=description, total=total, initial=initial, leave=False,
                     dynamic_ncols=True)  # fmt: skip
