"""The package's own format: one safetensors file, which holds every form there is."""

from __future__ import annotations

import json
from pathlib import Path

from ..._files import write_atomically
from ...version import __version__
from ..model import SparseAutoencoder
from .reading import Settings, guarded, of_safetensors, safetensors_of

SUFFIX = ".safetensors"
_FORMAT = "deepl0_kernels.sae"


def read(path: Path) -> SparseAutoencoder:
    """A file of :func:`write`."""
    header = _header(path)
    if header.take("format", None) != _FORMAT:
        raise ValueError(f"{path} holds no autoencoder of {_FORMAT}; its header is {header.values}")
    header.drop("version")
    options = _object(header, "options")
    metadata = _object(header, "metadata")
    header.done()
    weights = of_safetensors(path)
    W = weights.weight("W", None, None)
    p, n = W.shape
    D, bias = weights.weight("atoms", p, n).t(), weights.weight("bias", p)
    b_dec = weights.weight("b_dec", n)
    theta = weights.weight("theta", p) if "theta" in weights else None
    weights.done()
    try:
        sae = SparseAutoencoder.from_weights(W, D, bias, b_dec, theta, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    sae.metadata = metadata
    return sae


def _header(path: Path) -> Settings:
    safetensors_of(f"reading {path.name}")
    from safetensors import safe_open

    def metadata() -> dict[str, str]:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}

    return Settings(path, guarded(path, "safetensors", metadata))


def _object(header: Settings, key: str) -> dict:
    value = guarded(header.path, f"JSON ({key})", lambda: json.loads(header.take(key)))
    if not isinstance(value, dict):
        raise header.wrong(key, "a JSON object", value)
    return value


def write(sae: SparseAutoencoder, path: Path) -> None:
    """All weights, options and metadata."""
    module = safetensors_of(f"writing {path.name}")
    tensors = {
        "W": sae.W,
        "atoms": sae.D.t(),
        "bias": sae.bias,
        "b_dec": sae.b_dec,
        **({} if sae.theta is None else {"theta": sae.theta}),
    }
    data = module.save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        metadata={
            "format": _FORMAT,
            "version": __version__,
            "options": json.dumps(sae.options()),
            "metadata": json.dumps(sae.metadata),
        },
    )
    write_atomically(path, data)
