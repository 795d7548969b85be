# %% [markdown]
# # A layer of your own, compiled
#
# A transformer's feed-forward in which each token keeps its 32 largest hidden units.
# `torch.compile` sees one operator for the selection, and batches of any size run in one graph.

# %%
from collections.abc import Callable
from typing import Any

import torch

import deepl0_kernels as dk

WIDTH, HIDDEN, M = 64, 512, 32
torch.manual_seed(0)


class SparseFeedForward(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.down(dk.keep_top_m(self.up(x), M, positive=True))
        return x + added


layer = SparseFeedForward()
graphs = 0


def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """Counts compilations; "inductor" is what one takes."""
    global graphs
    graphs += 1
    return graph.forward


compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)

# %% [markdown]
# ## The same numbers, one graph

# %%
for batch in (2, 7, 31):
    x = torch.randn(batch, 10, WIDTH)
    assert torch.equal(compiled(x), layer(x))
print(f"three sizes of a batch, {graphs} graph")

# %% [markdown]
# ## Training through it

# %%
x, target = torch.randn(256, WIDTH), torch.randn(256, WIDTH)
optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
losses = []
for _ in range(50):
    loss = (compiled(x) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
hidden = dk.keep_top_m(layer.up(x), M, positive=True)
print(f"active units of {HIDDEN}: at most {int((hidden != 0).sum(1).max())}")
