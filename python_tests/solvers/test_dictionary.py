"""Dictionary learning: planted atoms, foreign oracles, streams, dead atoms, resumption, errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import DictionaryLearner, fista, learn_dictionary, omp
from deepl0_kernels.solvers import dictionary as module

from .problems import planted

KINDS = [
    dict(method="unrolled", m=4),
    # At 0.01, 19 parts of 20 of a tight frame's objective are the penalty, which hardly falls.
    dict(method="unrolled", lam=0.1),
    dict(method="l1", lam=0.2),
    dict(method="mod", m=4),
]


def recovered(D, truth) -> float:
    """Share of the true atoms that some atom of D equals but for its sign and norm."""
    D, truth = D.double(), truth.double()
    cosines = (D / D.norm(dim=0)).T @ (truth / truth.norm(dim=0))
    return (cosines.abs().amax(0) > 0.99).double().mean().item()


# What is left of the objective: of some kinds most of it is the noise, or the penalty.
@pytest.mark.parametrize(("kind", "left"), zip(KINDS, (0.7, 0.9, 0.9, 0.75), strict=True))
def test_learning(kind, left):
    x, _, _ = planted(n=20, p=30, rows=1000, dtype=torch.float32)
    r = learn_dictionary(x, 30, **kind, epochs=8, batch_size=50, seed=3)
    assert r.D.shape == (20, 30)
    assert r.D.dtype == torch.float32
    assert not r.D.requires_grad
    assert r.loss[-1] < left * r.loss[0]
    norm = torch.linalg.matrix_norm(r.D.double(), 2).item()
    if kind["method"] == "unrolled":
        assert norm <= 1 + 1e-5
    assert r.squared_norm == pytest.approx(norm**2, rel=1e-5)
    assert 0 < r.coherence <= 1 + 1e-6
    assert r.dead_atoms == r.replaced == 0
    assert 0 < r.atom_norms[0] <= r.atom_norms[1] <= 1 + 1e-6
    assert r.usage.shape == (30,)
    assert (r.usage > 0).all()
    if "m" in kind:
        assert r.usage.sum().item() == pytest.approx(4, rel=1e-6)
    again = learn_dictionary(x, 30, **kind, epochs=8, batch_size=50, seed=3)
    assert torch.equal(again.D, r.D)
    other = learn_dictionary(x, 30, **kind, epochs=1, batch_size=50, seed=4)
    assert not torch.equal(other.D, r.D)


@pytest.mark.parametrize("kind", [dict(method="l1", lam=0.2), dict(method="mod", m=3)])
def test_planted_atoms_are_recovered(kind):
    x, D, _ = planted(n=20, p=30, k=3, rows=2000)
    assert recovered(initial(x, kind).D, D) < 0.2
    r = learn_dictionary(x, 30, **kind, epochs=8, batch_size=50)
    assert recovered(r.D, D) >= 0.9


def initial(x, kind):
    learner = DictionaryLearner(30, **kind)
    learner.begin(x)
    return learner.result()


def test_each_l1_step_is_scikit_learns():
    """Its partial_fit is the same algorithm by other hands: the dictionaries agree step by step."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    x, _, _ = planted(n=20, p=30, rows=600)
    # Forgetting 1 is its rule, but for terms of the order of one over the size of a batch.
    ours = DictionaryLearner(30, method="l1", lam=0.2, forgetting=1, tol=1e-8, max_iter=20_000)
    ours.begin(x)
    first = ours.result().D
    theirs = decomposition.MiniBatchDictionaryLearning(
        30, alpha=0.2, fit_algorithm="cd", dict_init=first.T.numpy().copy(), shuffle=False,

    )  # fmt: skip
    for batch in x.split(60):
        ours.partial_fit(batch)
        theirs.partial_fit(batch.numpy())
    moved = (ours.result().D - first).norm().item()
    apart = (ours.result().D - torch.from_numpy(theirs.components_.T)).norm().item()
    assert moved > 1
    assert apart < 0.02 * moved


@pytest.mark.parametrize("rival", ["scikit-learn", "SPAMS"])
def test_the_l1_objective_is_as_low_as_others(rival):
    lam = 0.2
    x, _, _ = planted(n=20, p=30, rows=1200)
    train, test = x[:1000], x[1000:]
    ours = learn_dictionary(train, 30, method="l1", lam=lam, epochs=10, batch_size=50).D
    if rival == "SPAMS":
        np, spams = pytest.importorskip("numpy"), pytest.importorskip("spams")
        theirs = spams.trainDL(
            np.asfortranarray(train.T.numpy()), K=30, lambda1=lam, mode=2, batchsize=50,
            iter=200, numThreads=1, verbose=False,
        )  # fmt: skip
    else:
        decomposition = pytest.importorskip("sklearn.decomposition")
        learner = decomposition.MiniBatchDictionaryLearning(
            30, alpha=lam, fit_algorithm="cd", batch_size=50, max_iter=10, random_state=0
        )
        theirs = learner.fit(train.numpy()).components_.T
    theirs = torch.from_numpy(theirs.copy())
    assert theirs.norm(dim=0).max() <= 1 + 1e-6  # in the same ball as ours
    values = [
        fista(test, D, lam, tol=1e-8, max_iter=20_000).objective[-1].mean().item()
        for D in (ours, theirs)
    ]
    assert values[0] < 1.01 * values[1]


def test_mod_is_least_squares_for_the_codes_of_the_batch():
    x, _, _ = planted(n=20, p=30, rows=400)
    learner = DictionaryLearner(30, method="mod", m=4)
    learner.begin(x)
    a = omp(x, learner.result().D, 4).dense
    learner.partial_fit(x)
    fit = torch.linalg.lstsq(a, x).solution.T
    torch.testing.assert_close(learner.result().D, fit / fit.norm(dim=0), atol=1e-4, rtol=1e-4)
    # Sparse coding after the update can only be better than the least squares it was made of.
    assert (
        omp(x, learner.result().D, 4).objective[-1].mean()
        < omp(x, initial(x, dict(method="mod", m=4)).D, 4).objective[-1].mean()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream(kind):
    x, D, _ = planted(n=20, p=30, k=3, rows=4000, dtype=torch.float32)
    learner = DictionaryLearner(30, **kind, patience=1000)
    losses = [learner.partial_fit(batch) for batch in x.split(40)]
    # The initial atoms are signals of the first batch, which they represent too well.
    assert sum(losses[-10:]) < 0.9 * sum(losses[1:11])
    # Batches of other sizes go on with it, down to one signal.
    learner.partial_fit(x[:1])
    learner.partial_fit(x[:333])
    r = learner.result()
    assert r.loss == ()
    assert r.D.shape == D.shape
    if "m" in kind:
        assert r.usage.sum().item() == pytest.approx(kind["m"], rel=1e-6)
    before = r.D.clone()
    learner.partial_fit(x[:40])
    assert torch.equal(r.D, before)  # a copy
    assert not torch.equal(learner.result().D, before)


def test_the_first_batch_may_be_smaller_than_the_dictionary():
    x, _, _ = planted(n=20, p=30, rows=8, dtype=torch.float32)
    for kind in KINDS:
        learner = DictionaryLearner(30, **kind)
        learner.partial_fit(x)
        assert learner.result().D.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_dead_atoms_are_replaced_and_counted(kind, monkeypatch):
    x, _, _ = planted(n=20, p=30, rows=600)
    dead = [3, 11, 29]
    # Atoms that no signal has a share in: the last axis is left to them.
    x = torch.cat([x, torch.zeros(600, 1)], 1)
    learner = DictionaryLearner(30, **kind, patience=200)
    learner.begin(x)
    with torch.no_grad():
        learner._update.D[:, dead] = 0
        learner._update.D[20] = 0
        learner._update.D[20, dead] = 0.01
    for batch in x[:150].split(50):
        learner.partial_fit(batch)
    r = learner.result()
    assert r.dead_atoms == 3
    assert r.replaced == 0
    assert not r.usage[dead].any()
    advance, outcomes = module._advance, []
    monkeypatch.setattr(module, "_advance", lambda *a: outcomes.append(advance(*a)) or outcomes[-1])
    learner.partial_fit(x[150:200])  # the 200th signal
    r = learner.result()
    assert r.replaced == 3
    # What took their place is what is left of the three signals that are represented worst.
    residual = outcomes[0].residual
    worst = residual.norm(dim=1).argsort(descending=True)[:3]
    left = residual[worst].T / residual[worst].norm(dim=1)
    if kind["method"] == "unrolled":  # the projection touches them, too
        assert ((r.D[:, dead] / r.D[:, dead].norm(dim=0) * left).sum(0) > 0.8).all()
    else:
        torch.testing.assert_close(r.D[:, dead], left)
    for _ in range(3):
        for batch in x.split(50):
            learner.partial_fit(batch)
    r = learner.result()
    assert r.dead_atoms == 0
    assert (r.usage > 0).all()
    if kind["method"] == "unrolled":
        assert torch.linalg.matrix_norm(r.D, 2) <= 1 + 1e-9


@pytest.mark.parametrize(("n", "p"), [(20, 30), (30, 20)])
def test_the_unrolled_step_projects_to_the_spectral_ball(n, p):
    learner = DictionaryLearner(p, m=2)
    learner.begin(torch.randn(100, n, dtype=torch.float64))
    values = torch.linalg.svdvals(learner.result().D)
    torch.testing.assert_close(values, torch.ones_like(values))  # a tight frame
    U, _, Vh = torch.linalg.svd(torch.randn(n, p, dtype=torch.float64), full_matrices=False)
    singular = torch.linspace(0.1, 2, min(n, p), dtype=torch.float64)
    update = learner._update
    with torch.no_grad():
        update.D.copy_(U @ (singular[:, None] * Vh))
    update._project()
    want = U @ (singular.clamp(max=1)[:, None] * Vh)
    torch.testing.assert_close(update.D.detach(), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_goes_on_to_the_last_bit(kind, tmp_path):
    x, _, _ = planted(n=20, p=30, rows=400, dtype=torch.float32)
    whole = DictionaryLearner(30, **kind, total_steps=8, patience=150)
    for batch in x.split(50):
        whole.partial_fit(batch)
    part = DictionaryLearner(30, **kind, total_steps=8, patience=150)
    for batch in x.split(50)[:3]:
        part.partial_fit(batch)
    torch.save(part.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    part.partial_fit(x[:50])  # the state is a copy
    again = DictionaryLearner(30, **kind, total_steps=8, patience=150)
    again.load_state_dict(state)
    for batch in x.split(50)[3:]:
        again.partial_fit(batch)
    a, b = whole.result(), again.result()
    assert torch.equal(a.D, b.D)
    assert torch.equal(a.usage, b.usage)
    assert a.replaced == b.replaced


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_gives_the_same_bits(kind, tmp_path, monkeypatch):
    x, _, _ = planted(n=20, p=30, rows=300, dtype=torch.float32)
    options = dict(epochs=4, batch_size=50, **kind)
    want = learn_dictionary(x, 30, **options)
    path = tmp_path / "dictionary.pt"
    advance, calls = module._advance, []

    def interrupted(x, update):
        calls.append(len(x))
        if len(calls) == 15:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return advance(x, update)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn_dictionary(x, 30, **options, checkpoint=path)
        calls[:] = [0] * 20
        got = learn_dictionary(x, 30, **options, checkpoint=path)
        assert len(calls) == 20 + 2 * 6  # the two epochs that were not finished
    assert torch.equal(got.D, want.D)
    assert got.loss == want.loss
    assert torch.equal(got.usage, want.usage)
    # A finished one is not trained again.
    monkeypatch.setattr(module, "_advance", None)
    assert torch.equal(learn_dictionary(x, 30, **options, checkpoint=path).D, want.D)
    for change, words in (
        (dict(seed=5), "seed = 0, got seed = 5"),
        (dict(epochs=5), "epochs = 4, got"),
    ):
        with pytest.raises(ValueError, match=words):
            learn_dictionary(x, 30, **options | change, checkpoint=path)
    with pytest.raises(ValueError, match="is of x = "):
        learn_dictionary(x + 1, 30, **options, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"dictionary\.pt cannot be read as a checkpoint"):
        learn_dictionary(x, 30, **options, checkpoint=path)
    torch.save({"losses": []}, path)
    with pytest.raises(ValueError, match="as a checkpoint: it lacks arguments, learner"):
        learn_dictionary(x, 30, **options, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["dictionary.pt"]


def test_a_state_of_other_options_is_refused():
    x, _, _ = planted(n=20, p=30, rows=100)
    learner = DictionaryLearner(10, m=2)
    with pytest.raises(RuntimeError, match="partial_fit has not been called"):
        learner.state_dict()
    with pytest.raises(RuntimeError, match="partial_fit has not been called"):
        learner.result()
    learner.partial_fit(x)
    with pytest.raises(ValueError, match="state is of m = 2, got m = 3"):
        DictionaryLearner(10, m=3).load_state_dict(learner.state_dict())
    with pytest.raises(ValueError, match="state lacks options"):
        learner.load_state_dict({})


def broken_states(state):
    """A state with each entry in turn left out, of another type, of another shape, or nan."""

    def changes(node):
        for key, value in node.items():
            yield {k: v for k, v in node.items() if k != key}
            yield node | {key: object()}
            if isinstance(value, torch.Tensor):
                yield node | {key: value[:-1]}
                if value.is_floating_point():
                    yield node | {key: torch.full_like(value, torch.nan)}

    yield from changes({k: v for k, v in state.items() if k != "options"})
    for update in changes(state["update"]):
        yield state | {"update": update}
    yield state | {"options": [1]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_state_changes_nothing(kind):
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    learner = DictionaryLearner(10, **kind)
    learner.partial_fit(x)
    other = DictionaryLearner(10, **kind)
    other.partial_fit(x + 1)
    whole = learner.state_dict()
    want, seen = other.result().D, 0
    for state in broken_states(whole):
        with pytest.raises(ValueError, match="state"):
            other.load_state_dict({"options": whole["options"]} | state)
        assert torch.equal(other.result().D, want)
        seen += 1
    assert seen > 20
    assert other.partial_fit(x) == pytest.approx(other.partial_fit(x), rel=0.5)
    with pytest.raises(TypeError, match="state must be a dict, got list"):
        other.load_state_dict([])


def test_a_damaged_checkpoint_is_named(tmp_path):
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    path = tmp_path / "dictionary.pt"
    options = dict(m=2, epochs=2, batch_size=50, checkpoint=path)
    learn_dictionary(x, 10, **options)
    saved = torch.load(path, weights_only=True)
    del saved["learner"]["update"]["D"]
    torch.save(saved, path)
    with pytest.raises(ValueError, match=r"dictionary\.pt cannot be read as a checkpoint: state"):
        learn_dictionary(x, 10, **options)


def test_it_leaves_the_global_generator_alone():
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    before = torch.get_rng_state()
    learn_dictionary(x, 10, m=2, epochs=1, batch_size=50)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    ],
)
def test_the_callers_modes_change_nothing(context, kind):
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    want = learn_dictionary(x, 10, **kind, epochs=1, batch_size=50).D
    with context():
        got = learn_dictionary(x, 10, **kind, epochs=1, batch_size=50).D
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(m=None), "exactly one of m and lam, got m=None and lam=None"),
        (dict(lam=0.1), "exactly one of m and lam, got m=2 and lam=0.1"),
        (dict(method="l1"), "'l1' takes lam and no m, got m=2"),
        (dict(method="mod", lam=0.1), "'mod' takes m and no lam, got m=2 and lam=0.1"),
        (dict(method="mod", p=30, m=21), r"m must be >= 1 and <= min\(n, p\) = 20, got 21"),
        (dict(method="k-svd"), "method must be one of .* got 'k-svd'"),
        (dict(p=101), "p must be >= 1 and <= N = 100, got 101"),
        (dict(m=11), "m must be >= 1 and <= p = 10, got 11"),
        (dict(batch_size=101), "batch_size must be .* got 101"),
        (dict(lr=0.0), "lr must be a finite number > 0, got 0.0"),
        (dict(patience=0), "patience must be >= 1, got 0"),
        (dict(forgetting=-1), r"forgetting must be a finite number >= 0, got -1\.0"),
        (dict(x=torch.full((100, 20), torch.nan)), "x must be finite, got 2000"),
        (dict(x=torch.zeros(100, 20)), "x must not be all 0"),
        (dict(x=torch.ones(100, 20, dtype=torch.int64)), "x must be float32"),
        (dict(x=torch.ones(0, 20)), r"x must be .* \(0, 20\)"),
        (dict(x=torch.ones(100)), r"x must be .* \[N, n\], got torch.float32 \(100,\)"),
    ],
)
def test_bad_arguments(change, message):
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        learn_dictionary(**(dict(x=x, p=10, m=2, batch_size=50) | change))


def test_a_stream_keeps_its_shape_and_dtype():
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    learner = DictionaryLearner(10, m=2)
    learner.partial_fit(x)
    with pytest.raises(ValueError, match=r"x must be \[B, n\] with n = 20, got \(100, 19\)"):
        learner.partial_fit(x[:, 1:])
    with pytest.raises(ValueError, match="x must have the dtype of D"):
        learner.partial_fit(x.double())
    with pytest.raises(ValueError, match="x must be finite, got 1"):
        learner.partial_fit(
            x.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(torch.inf))
        )


def test_the_reference_learns_the_same():
    x, _, _ = planted(n=20, p=30, rows=200)
    for kind in KINDS:
        want = learn_dictionary(x, 30, **kind, epochs=1, batch_size=50).D
        with dk.use_backend("reference"):
            got = learn_dictionary(x, 30, **kind, epochs=1, batch_size=50).D
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
