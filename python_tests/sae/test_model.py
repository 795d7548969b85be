"""The autoencoder against its formulas written out: codes, reconstructions, layouts, memory."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

import deepl0_kernels as dk
from deepl0_kernels.sae import SparseAutoencoder, fvu
from python_tests.sae import forwards
from python_tests.sae.samples import K, N, P, numbers

X = numbers(50, N, seed=9)


def autoencoder(dtype=torch.float64, **options):
    """With biases and atoms that are not of norm 1."""
    if options.get("selection", "top_m") == "top_m":
        options.setdefault("m", K)
    theta = numbers(P, seed=5).abs() if options.get("selection") == "threshold" else None
    given = [
        numbers(P, N, seed=1),
        numbers(P, N, seed=2).t(),
        0.3 * numbers(P, seed=3),
        0.3 * numbers(N, seed=4),
        theta,
    ]
    given = [None if t is None else t.to(dtype) for t in given]
    return SparseAutoencoder.from_weights(*given, **options)


def dense(code):
    return code.to_dense() if isinstance(code, dk.SparseCode) else code


@pytest.mark.parametrize("apply", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(positive=False),
        dict(num_stages=2),
        dict(num_stages=3, m=[8, 4, 2], positive=False),
        dict(selection="relu"),
        dict(selection="threshold"),
        dict(selection="threshold", num_stages=2),
    ],
)
def test_stages_written_out(options, apply):
    """z <- h(z + W (x - D z) + b), of x or of x - b_dec."""
    model = autoencoder(apply_b_dec_to_input=apply, **options)
    x = X.double()
    inner = x - model.b_dec if apply else x
    z = torch.zeros(len(x), P, dtype=x.dtype)
    for k in range(model.num_stages):
        u = z + (inner - z @ model.D.t()) @ model.W.t() + model.bias
        if model.selection == "threshold":
            z = forwards.jump_relu(u, model.theta)
        elif model.selection == "relu":
            z = u.relu()
        else:
            select = forwards.top_k if model.positive else forwards.abs_top_k
            z = select(u, model.m[k])
    code = model.encode(x)
    assert isinstance(code, dk.SparseCode) == (model.selection == "top_m")
    torch.testing.assert_close(dense(code), z)
    x_hat = z @ model.D.t() + model.b_dec
    torch.testing.assert_close(model.decode(code), x_hat)
    torch.testing.assert_close(model.decode(z), x_hat)
    torch.testing.assert_close(model(x), x_hat)


def test_where_b_dec_is_taken_off_makes_no_difference_but_for_the_bias():
    """W (x - b_dec) + b = W x + (b - W b_dec), in every stage."""
    model = autoencoder(num_stages=3)
    weights = dict(model.named_parameters())
    weights["bias"] = model.bias - model.W @ model.b_dec
    other = SparseAutoencoder.from_weights(
        **weights, **(model.options() | {"apply_b_dec_to_input": False})
    )
    torch.testing.assert_close(model(X.double()), other(X.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("selection", ["top_m", "threshold", "relu"])
def test_shapes_and_dtypes(selection, dtype):
    model = autoencoder(selection=selection, dtype=dtype)
    for shape in ((N,), (0, N), (3, 4, N)):
        x = numbers(*shape, seed=6, dtype=dtype)
        assert model(x).shape == shape
        assert model(x).dtype == dtype
        assert dense(model.encode(x)).shape == (*shape[:-1], P)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
def test_normalised_inputs(normalize):
    """Scaling x (and shifting it, of a layer norm) does the same to the reconstruction."""
    model = autoencoder(normalize=normalize)
    x = X.double()
    shift = 2.0 if normalize == "layer_norm" else 0.0
    torch.testing.assert_close(model(5 * x + shift), 5 * model(x) + shift, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"like must be the encoded x with normalize='{normalize}"):
        model.decode(model.encode(x))


def test_atoms_lie_in_rows_and_so_do_gradients_and_copies():
    model = SparseAutoencoder(N, P, m=K)
    model.loss(X).loss.backward()
    loaded = SparseAutoencoder(N, P, m=K)
    loaded.load_state_dict(model.state_dict())
    for one in (model, copy.deepcopy(model), loaded, copy.deepcopy(model).double().float()):
        assert one.D.shape == (N, P)
        assert one.D.t().is_contiguous()
        assert torch.equal(one.D, model.D)
    assert model.D.grad.t().is_contiguous()
    torch.testing.assert_close(model.D.norm(dim=0), torch.ones(P))
    assert torch.equal(model.W, model.D.t())
    assert model.W.data_ptr() != model.D.data_ptr()


def test_tied_weights_become_two_parameters():
    W = numbers(P, N)
    model = SparseAutoencoder.from_weights(W, W.t(), m=K)
    with torch.no_grad():
        model.D.zero_()
    assert torch.equal(model.W, W)
    assert model.W.any()


def test_gradients_are_those_of_the_formula():
    """Of every parameter and of x, against torch on the dense formula, at the same supports."""
    x = X.double().requires_grad_()
    for options in ({}, dict(positive=False), dict(scale_by_norms=True), dict(num_stages=2)):
        model = autoencoder(**options)
        weights = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
        (model(x) - x).square().sum().backward()
        seen, x.grad = x.grad, None
        inner, D = x - weights["b_dec"], weights["D"]
        norms = D.norm(dim=0) if model.scale_by_norms else torch.ones(P, dtype=x.dtype)
        z = torch.zeros(len(x), P, dtype=x.dtype)
        for _ in range(model.num_stages):
            u = z + (inner - z @ D.t()) @ weights["W"].t() + weights["bias"]
            select = forwards.top_k if model.positive else forwards.abs_top_k
            z = select(u * norms, K)
        out = (z / norms) @ D.t() + weights["b_dec"]
        (out - x).square().sum().backward()
        torch.testing.assert_close(seen, x.grad)
        x.grad = None
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, weights[name].grad, msg=name)


def test_folded_norms_change_nothing():
    for options in (dict(scale_by_norms=True), dict(selection="threshold")):
        model = autoencoder(**options)
        x, before = X.double(), copy.deepcopy(model)
        model.fold_norms()
        torch.testing.assert_close(model.D.norm(dim=0), torch.ones(P, dtype=x.dtype))
        assert model.D.t().is_contiguous()
        assert not model.scale_by_norms
        torch.testing.assert_close(model(x), before(x))
        scale = 1.0 if before.scale_by_norms else before.D.norm(dim=0)
        torch.testing.assert_close(dense(model.encode(x)), dense(before.encode(x)) * scale)
    for options in ({}, dict(selection="threshold", num_stages=2)):
        with pytest.raises(ValueError, match="fold_norms needs scale_by_norms or one stage"):
            autoencoder(**options).fold_norms()


def test_atoms_of_norm_0_are_no_nan():
    model = autoencoder(scale_by_norms=True, m=P, dtype=torch.float32)
    with torch.no_grad():
        model.D[:, 3] = 0
    assert model(X).isfinite().all()
    model.normalize_atoms()
    model.fold_norms()
    assert model(X).isfinite().all()


@pytest.mark.parametrize("selection", ["top_m", "threshold", "relu"])
def test_deeper_autoencoders_start_from_the_shallow_one(selection):
    model = autoencoder(selection=selection, dtype=torch.float32)
    model.metadata = {"model_name": "some"}
    assert torch.equal(model.deepen(1)(X), model(X))
    deep = model.deepen(3)
    # Entries grow evenly to those of the last stage, unless they are said.
    entries = tuple(-(-K * k // 3) for k in (1, 2, 3)) if selection == "top_m" else ()
    assert (deep.num_stages, deep.m) == (3, entries)
    assert deep.deepen(3).m == entries
    if selection == "top_m":
        assert model.deepen(3, K).m == (K,) * 3
        assert model.deepen(3, [1, 1, 2]).m == (1, 1, 2)
        assert model.deepen(1, 2).m == (2,)
        with pytest.raises(ValueError, match="m must have num_stages = 3 entries, got 2"):
            model.deepen(3, [1, 2])
    else:
        with pytest.raises(ValueError, match="m must be None with selection"):
            model.deepen(3, 2)
    assert deep.metadata == model.metadata
    for (name, own), theirs in zip(model.named_parameters(), deep.parameters(), strict=True):
        assert torch.equal(own, theirs), name
        assert own.data_ptr() != theirs.data_ptr()
    assert deep.D.t().is_contiguous()
    with pytest.raises(ValueError, match="num_stages must be >= 3, got 2"):
        deep.deepen(2)


def test_a_deeper_one_of_scaled_entries_has_them_folded():
    model = autoencoder(scale_by_norms=True)
    deep = model.deepen(2)
    assert model.scale_by_norms
    assert not deep.scale_by_norms
    one = SparseAutoencoder.from_weights(
        **dict(deep.named_parameters()), **(deep.options() | {"num_stages": 1, "m": K})
    )
    torch.testing.assert_close(one(X.double()), model(X.double()))


def test_stages_are_a_descent_where_w_is_a_step_of_it():
    """With W = D' / ||D||^2 and no biases, K stages are K steps of iterative hard thresholding."""
    D = numbers(N, P).double()
    step = 0.99 / torch.linalg.matrix_norm(D, 2).item() ** 2
    model = SparseAutoencoder.from_weights(step * D.t(), D, m=K, positive=False)
    x = X.double()
    errors = []
    for stages in range(1, 6):
        code = model.deepen(stages, K).encode(x)
        steps = dk.solvers.iht_m(x, D, K, step=step, max_iter=stages, tol=1e-30)
        torch.testing.assert_close(code.to_dense(), steps.dense)
        errors.append((dk.decode(code, D) - x).square().sum())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_compiled_and_under_autocast():
    for options in ({}, dict(num_stages=2), dict(selection="threshold"), dict(scale_by_norms=True)):
        model = autoencoder(dtype=torch.float32, **options)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X), model(X))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model.loss(X)
        assert out.loss.dtype == torch.float32
        out.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_theta_learns_through_the_window():
    """d/dtheta of helu's ramp, below theta alone; none in evaluation or at sigma = 0."""
    model = autoencoder(selection="threshold", sigma=0.5)
    x = X.double()
    grad = torch.autograd.grad(model.encode(x).sum(), model.theta)[0]
    u = functional.linear(x - model.b_dec, model.W, model.bias)
    window = (u > 0.5 * model.theta) & (u <= model.theta)
    torch.testing.assert_close(grad, -window.sum(0).double())
    assert window.any()
    for off in (copy.deepcopy(model).eval(), autoencoder(selection="threshold", sigma=0.0)):
        assert not torch.autograd.grad(off.encode(x).sum(), off.theta)[0].any()
        assert torch.equal(off.encode(x), model.encode(x))


def test_negative_thresholds_are_0():
    theta = torch.full((P,), -0.7, dtype=torch.float64)
    own = dict(autoencoder(selection="relu").named_parameters())
    model = SparseAutoencoder.from_weights(**own, theta=theta, selection="threshold")
    torch.testing.assert_close(model(X.double()), autoencoder(selection="relu")(X.double()))


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from deepl0_kernels.sae import DeadUnits, SparseAutoencoder
n, p, m, B, K = 32, 32768, 16, 2048, int(sys.argv[1])
model = SparseAutoencoder(n, p, m=m, num_stages=K)
dead = DeadUnits(p, after=1)
x = torch.randn(B, n)
def step(x):
    out = model.loss(x, dead=dead.units(), k_aux=16)
    out.loss.backward()
    model.remove_parallel_gradient()
    model.normalize_atoms()
    dead.update(out.code)
    return out
step(x[:16])
step(x[:16])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = step(x)
assert out.aux > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("stages", [1, 2])
def test_nothing_dense_of_the_batch_is_formed(stages):
    """A whole training step with dead units: [B, p] would be 256 MB, a gradient [p, n] is 4."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(stages)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64


GOOD = dict(in_features=N, code_size=P, m=K)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(in_features=0), ValueError, "in_features must be >= 1, got 0"),
        (dict(code_size=2.5), TypeError, "code_size must be an integer, got 2.5"),
        (dict(m=None), ValueError, "m must be given with selection='top_m', got None"),
        (dict(m=0), ValueError, f"m must be >= 1 and <= code_size = {P}, got 0"),
        (dict(m=P + 1), ValueError, f"m must be >= 1 and <= code_size = {P}, got {P + 1}"),
        (dict(m=[4, 4]), ValueError, "m must have num_stages = 1 entries, got 2"),
        (dict(m=[4], num_stages=2), ValueError, "m must have num_stages = 2 entries, got 1"),
        (dict(num_stages=0), ValueError, "num_stages must be >= 1, got 0"),
        (dict(selection="topk"), ValueError, "selection must be one of .*'topk'"),
        (dict(selection="relu"), ValueError, "m must be None with selection='relu', got 5"),
        (dict(selection="threshold"), ValueError, "m must be None with selection='threshold'"),
        (
            dict(selection="threshold", m=None, positive=False),
            ValueError,
            "positive must be True with selection='threshold', got False",
        ),
        (dict(positive=1), TypeError, "positive must be True or False, got 1"),
        (dict(normalize="layernorm"), ValueError, "normalize must be one of .*'layernorm'"),
        (dict(scale_by_norms=True, num_stages=2), ValueError, "scale_by_norms must be False"),
        (
            dict(scale_by_norms=True, selection="relu", m=None),
            ValueError,
            "scale_by_norms must be False",
        ),
        (dict(theta=0.0), ValueError, "theta must be a finite number > 0, got 0.0"),
        (dict(sigma=2.0), ValueError, r"sigma must be in \[0, 1\], got 2.0"),
    ],
)
def test_options_out_of_range(change, error, message):
    with pytest.raises(error, match=message):
        SparseAutoencoder(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(W=numbers(P)), "W must have at least 2"),
        (dict(D=numbers(P, N)), r"D must have shape \[n, p\] = \(12, 40\), got \(40, 12\)"),
        (dict(D=numbers(N, P).double()), "D must have the dtype of W"),
        (dict(bias=numbers(N)), "bias must have shape"),
        (dict(b_dec=numbers(P)), "b_dec must have shape"),
        (dict(theta=numbers(P)), "theta must be None without selection='threshold', got"),
        (dict(selection="threshold", m=None), "theta must be given with selection='threshold'"),
        (dict(m=P + 1), "m must be >= 1"),
    ],
)
def test_weights_that_do_not_fit(change, message):
    good = dict(W=numbers(P, N), D=numbers(N, P), m=K)
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder.from_weights(**(good | change))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (numbers(3, N + 1), ValueError, r"x must have shape \[..., n\] = \[..., 12\], got"),
        (numbers(3, N).double(), ValueError, "x must have the dtype of the weights"),
        (torch.ones(3, N, dtype=torch.int64), ValueError, "x must be float32"),
        ([[1.0] * N], TypeError, "x must be a tensor, got list"),
    ],
)
def test_inputs_that_do_not_fit(x, error, message):
    model = autoencoder(dtype=torch.float32)
    for call in (model, model.encode, model.loss):
        with pytest.raises(error, match=message):
            call(x)


def test_codes_that_do_not_fit():
    model = autoencoder(dtype=torch.float32)
    code = model.encode(X)
    with pytest.raises(ValueError, match=f"code must have size p = {P}, got {P + 1}"):
        model.decode(dk.SparseCode(code.values, code.indices, P + 1))
    with pytest.raises(ValueError, match=r"code must have shape \[..., p\]"):
        model.decode(torch.zeros(3, P + 1))
    with pytest.raises(ValueError, match="code must have the dtype of the weights"):
        model.decode(torch.zeros(3, P, dtype=torch.float64))


def test_depth_on_real_activations(minilm):
    """What stages do to the reconstruction of a transformer's residual stream: of these nonnegative
    codes a second one that keeps as many, untrained, leaves more of it; where entries grow it
    leaves less than that, and, trained end to end, less again."""
    import numpy as np

    with np.load(minilm) as file:
        train, test = (
            torch.from_numpy(file[k][:n]).float() for k, n in (("train", 4096), ("test", 512))
        )
    model = SparseAutoencoder(384, 768, m=24)
    with torch.no_grad():
        model.b_dec.copy_(train.mean(0))
    before = fvu(test, model(test)).item()
    minimise(model, train, 24)
    shallow = fvu(test, model(test)).item()
    assert shallow < 0.8 * before
    deep = model.deepen(2)
    untuned = fvu(test, deep(test)).item()
    assert fvu(test, model.deepen(2, 24)(test)).item() > max(untuned, shallow)
    minimise(deep, train, 24)
    minimise(model, train, 24)
    tuned, longer = fvu(test, deep(test)).item(), fvu(test, model(test)).item()
    print(f"FVU {before:.3f} {shallow:.3f}, two stages {untuned:.3f}; {longer:.3f}, {tuned:.3f}")
    assert tuned < untuned


def minimise(model, x, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for i in range(steps):
        rows = torch.arange(256 * i, 256 * (i + 1)) % len(x)
        optimizer.zero_grad()
        model.loss(x[rows]).loss.backward()
        model.remove_parallel_gradient()
        optimizer.step()
        model.normalize_atoms()
