"""A rank, as torchrun starts it, which trains and closes: ``python -m ... UNITS``.

Its last line names the threads that are left.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from deepl0_kernels import distributed, sae


def threads() -> list[str]:
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.launched(int(sys.argv[1])) as ranks:
        model, x = sae.SparseAutoencoder(8, 24, 3), torch.randn(64, 8)
        if ranks.units is not None:
            distributed.shard_units(model, ranks.units)
        sae.fit(model, x, steps=3, batch=16, data=ranks.data)
        ranks.once(lambda: None)
        assert any("gloo" in name for name in threads()), threads()
    print([name for name in threads() if "gloo" in name])
