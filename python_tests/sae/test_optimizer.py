"""SparseAdam against torch.optim.Adam, and against it on the units in use alone."""

from __future__ import annotations

import copy

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.sae import SparseAdam, SparseAutoencoder

P, N = 40, 19
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
OPTIONS = dict(lr=3e-2, betas=(0.8, 0.95), eps=1e-6)


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """W [p, n], D [n, p] by columns, a bias [p]."""
    torch.manual_seed(0)
    some = torch.randn(P, N), torch.randn(P, N).t(), torch.randn(P)
    return [torch.nn.Parameter(t.to(dtype)) for t in some]


def set_gradients(params: list[torch.nn.Parameter], units: torch.Tensor) -> None:
    for p in params:
        grad = torch.randn_like(p)  # times 0 of either sign
        keep = torch.zeros(P, dtype=torch.bool)
        keep[units] = True
        p.grad = grad * (keep if p.shape[0] != P or p.dim() == 1 else keep[:, None])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    eps = torch.finfo(dtype).eps
    return dict(rtol=20 * eps, atol=20 * eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_with_every_unit_in_use_it_is_adam(dtype, backend):
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, adam = SparseAdam(ours, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS)
    for step in range(20):
        torch.manual_seed(step)
        set_gradients(ours, torch.arange(P))
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        with dk.use_backend(backend):
            optimizer.step()
        adam.step()
    # Steps of Adam have a size of their own: an error of one step is not amplified by the next.
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **{k: 8 * v for k, v in tolerance(dtype).items()})
        assert p.stride() == optimizer.state[p]["exp_avg"].stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_units_without_a_gradient_stand_still(dtype):
    """The oracle: a step of Adam, of which only the units in use are taken."""
    ours = parameters(dtype)
    optimizer = SparseAdam(ours, **OPTIONS)
    for step in range(12):
        torch.manual_seed(step)
        units = torch.randperm(P)[: P // 4]
        still = torch.ones(P, dtype=torch.bool)
        still[units] = False
        set_gradients(ours, units)
        before = [p.detach().clone() for p in ours]
        adam = torch.optim.Adam([torch.nn.Parameter(p.detach().clone()) for p in ours], **OPTIONS)
        for p, q in zip(ours, adam.param_groups[0]["params"], strict=True):
            q.grad = p.grad.clone()
            if step:
                state = copy.deepcopy(optimizer.state[p])
                adam.state[q] = state | {"step": torch.tensor(float(step))}
        optimizer.step()
        adam.step()
        for p, q, old in zip(ours, adam.param_groups[0]["params"], before, strict=True):
            rows = (lambda t: t) if p.shape[0] == P else torch.t
            torch.testing.assert_close(rows(p)[units], rows(q)[units], **tolerance(dtype))
            assert torch.equal(rows(p)[still], rows(old)[still])
            assert (rows(p)[units] != rows(old)[units]).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_unit_norm_is_the_three_calls(dtype):
    """remove_parallel_gradient, a step, normalize_atoms."""
    torch.manual_seed(0)
    model = SparseAutoencoder(N, P, m=4).to(dtype)
    other = copy.deepcopy(model)
    ours = SparseAdam([{"params": [model.W]}, {"params": [model.D], "unit_norm": True}], lr=1e-2)
    theirs = torch.optim.Adam([other.W, other.D], lr=1e-2)
    for _ in range(10):
        x = torch.randn(64, N, dtype=dtype)
        for one, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            one.loss(x).loss.backward()
            if one is other:
                other.remove_parallel_gradient()
            optimizer.step()
            if one is other:
                other.normalize_atoms()
        assert (model.D.grad != 0).any(0).all()  # every unit in use
    torch.testing.assert_close(model.D.norm(dim=0), torch.ones(P, dtype=dtype))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(model.D, other.D, rtol=0, atol=1e4 * eps)
    torch.testing.assert_close(model.W, other.W, rtol=0, atol=1e4 * eps)


@pytest.mark.parametrize("threads", [1, 2])
def test_native_and_reference_agree_on_an_atom_of_zero(threads):
    results = []
    for backend in ("cpu", "reference"):
        p = torch.nn.Parameter(torch.zeros(3, 5))
        p.grad = torch.zeros(3, 5)
        p.grad[1, 2] = 1.0
        optimizer = SparseAdam([p], lr=0.1, unit_norm=True)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with dk.use_backend(backend):
            optimizer.step()
        torch.set_num_threads(before)
        results.append(p.detach())
    torch.testing.assert_close(*results)
    assert results[0][1].tolist() == [0.0, 0.0, -1.0, 0.0, 0.0]
    assert not results[0][[0, 2]].any()


def test_a_training_goes_on_to_the_same_bits():
    ours = parameters()
    optimizer = SparseAdam(ours, **OPTIONS)
    set_gradients(ours, torch.arange(0, P, 2))
    optimizer.step()
    again = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    other = SparseAdam(again, **OPTIONS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(ours, again, strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, again, strict=True))


def test_a_graph_of_before_a_step_is_outdated():
    model = SparseAutoencoder(N, P, m=4)
    loss = model.loss(torch.randn(5, N)).loss
    loss.backward(retain_graph=True)
    SparseAdam(model.parameters()).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_other_layouts():
    """A parameter, or a gradient, in any layout."""
    torch.manual_seed(0)
    values, grads = torch.randn(6, 8), torch.randn(6, 8)
    want = torch.nn.Parameter(values.clone())
    want.grad = grads.clone()
    SparseAdam([want]).step()
    base = torch.zeros(6, 16)
    p = torch.nn.Parameter(base[:, ::2])
    with torch.no_grad():
        p.copy_(values)
    p.grad = grads.t().contiguous().t()
    SparseAdam([p]).step()
    assert torch.equal(p, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lr=0.0), "lr must be"),
        (dict(lr=float("nan")), "lr must be"),
        (dict(eps=0.0), "eps must be"),
        (dict(betas=(0.9, 1.0)), "betas must be"),
        (dict(betas=(0.9,)), "betas must be"),
        (dict(unit_norm=1), "unit_norm must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SparseAdam([torch.nn.Parameter(torch.zeros(2, 2))], **options)


def test_bad_parameters():
    vector = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"real matrices, got torch.float32 \(3,\)"):
        SparseAdam([vector], unit_norm=True)
    with pytest.raises(ValueError, match=r"matrices or vectors, got torch.float32 \(1, 1, 1\)"):
        SparseAdam([torch.nn.Parameter(torch.zeros(1, 1, 1))])
    matrix = torch.nn.Parameter(torch.zeros(3, 2))
    matrix.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(ValueError, match="strided"):
        SparseAdam([matrix]).step()


def test_the_shift_of_the_input_has_its_gradient():
    """b_dec's by way of the bias, and the whole one where x is differentiated too."""
    torch.manual_seed(0)
    for options in (
        dict(m=5),
        dict(m=5, positive=False, scale_by_norms=True),
        dict(m=[3, 5], num_stages=2),
        dict(selection="threshold", num_stages=2, theta=0.3),
        dict(selection="relu"),
    ):
        model = SparseAutoencoder(N, P, **options).double()
        with torch.no_grad():
            model.b_dec.normal_()
            model.bias.normal_(std=0.1)
        x = torch.randn(7, N, dtype=torch.float64)
        grads = []
        for data in (x, x.clone().requires_grad_()):
            model.zero_grad()
            model.loss(data, dead=None).loss.backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
