"""In a transformer of SAELens, made from a configuration: hooks, the error term, its runner."""

from __future__ import annotations

import warnings

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from transformer_lens import HookedTransformerConfig

from deepl0_kernels import sae as own
from python_tests.sae.client.runs import INFERENCE, PAIRS

pytestmark = pytest.mark.saelens

CONTEXT, VOCABULARY, WIDTH, UNITS = 16, 50, 32, 256
HOOK = "blocks.1.hook_resid_pre"
ACTS = f"{HOOK}.hook_sae_acts_post"


@pytest.fixture(scope="module")
def model():
    config = dict(n_layers=2, d_model=WIDTH, n_heads=4, d_head=8, d_mlp=64, act_fn="gelu")
    return HookedSAETransformer(
        HookedTransformerConfig(**config, n_ctx=CONTEXT, d_vocab=VOCABULARY, seed=0, device="cpu")
    )


@pytest.fixture
def tokens():
    return torch.randint(0, VOCABULARY, (2, CONTEXT))


def inference(kind, ours, **more):
    cls = INFERENCE[kind][ours]
    torch.manual_seed(1)
    sae = cls(cls_config(cls)(d_in=WIDTH, d_sae=UNITS, k=6, **more))
    sae.cfg.metadata.hook_name = HOOK
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1)
        sae.b_dec.normal_(0, 0.1)
    return sae


def cls_config(cls):
    import sae_lens.registry

    (config,) = (c for s, c in sae_lens.registry.SAE_CLASS_REGISTRY.values() if s is cls)
    return config


@pytest.mark.parametrize("kind", INFERENCE)
@pytest.mark.parametrize("error_term", [False, True])
def test_run_with_cache(kind, error_term, model, tokens):
    found = []
    for ours in (False, True):
        sae = inference(kind, ours)
        with model.saes(saes=[sae], use_error_term=error_term):
            found.append(model.run_with_cache(tokens))
    (plain, theirs), (logits, ours) = found
    assert [k for k in ours if "hook_sae" in k] == [k for k in theirs if "hook_sae" in k]
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    assert len([k for k in ours if "hook_sae" in k]) == 5 + error_term


@pytest.mark.parametrize("kind", INFERENCE)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_error_term_makes_up_for_everything(kind, sparse, model, tokens):
    """And what a hook then changes in the activations still shows."""
    sae = inference(kind, True, use_sparse_activations=sparse)
    theirs = inference(kind, False)
    bare = model(tokens)
    with model.saes(saes=[sae], use_error_term=True):
        torch.testing.assert_close(model(tokens), bare, rtol=1e-4, atol=1e-5)
        changed = model.run_with_hooks(tokens, fwd_hooks=[(ACTS, lambda z, hook: 0 * z)])
    with model.saes(saes=[theirs], use_error_term=True):
        expected = model.run_with_hooks(tokens, fwd_hooks=[(ACTS, lambda z, hook: 0 * z)])
    assert (changed - bare).abs().max() > 1e-3
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        sae.use_error_term = True
    x = torch.randn(7, WIDTH)
    torch.testing.assert_close(sae(x), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", INFERENCE)
def test_a_hook_sees_and_changes_dense_tensors(kind, model, tokens):
    sae = inference(kind, True, use_sparse_activations=True)
    seen = {}

    def keep(tensor, hook):
        seen[hook.name] = tensor
        return tensor

    x = torch.randn(5, WIDTH)
    for name in ("hook_sae_acts_pre", "hook_sae_acts_post"):
        out = sae.run_with_hooks(x, fwd_hooks=[(name, keep)])
        torch.testing.assert_close(out, sae(x))
        assert not seen[name].is_sparse
        assert seen[name].shape == (5, UNITS)
    torch.testing.assert_close(seen["hook_sae_acts_pre"], (x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert sae.encode(x).is_sparse  # hooks are gone
    # Gradients at the activations, as attribution takes them.
    grads = []
    for one in (inference(kind, False), sae):
        caught = []
        one.add_hook("hook_sae_acts_post", lambda g, hook, c=caught: c.append(g), dir="bwd")
        one(x).square().sum().backward()
        one.reset_hooks()
        grads.append(caught[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_hooks_in_training(kind):
    """A hook on pre-activations gets all of them, and the losses are as without one."""
    from sae_lens.saes.sae import TrainStepInput

    cls, config = PAIRS[kind][1]
    sae = cls(config(d_in=WIDTH, d_sae=UNITS, k=6))
    x = torch.randn(40, WIDTH)
    given = TrainStepInput(x, {}, torch.arange(UNITS) < 100, 0, False)
    plain = sae.training_forward_pass(given)
    for name in ("hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_input", "hook_sae_recons"):
        shapes = []
        sae.add_hook(name, lambda z, hook, s=shapes: s.append((z.shape, z.is_sparse)))
        hooked = sae.training_forward_pass(given)
        sae.reset_hooks()
        assert shapes == [((40, UNITS if "acts" in name else WIDTH), False)]
        for key, loss in plain.losses.items():
            torch.testing.assert_close(hooked.losses[key], loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_runner(kind, model, tmp_path):
    """From a configuration to files that SAELens reads, with the weights that its class gives."""
    rows = torch.randint(0, VOCABULARY, (200, CONTEXT)).tolist()
    trained = []
    for ours in (False, True):
        _, config = PAIRS[kind][ours]
        cfg = LanguageModelSAERunnerConfig(
            sae=config(d_in=WIDTH, d_sae=UNITS, k=6),
            model_name="made-here",
            hook_name=HOOK,
            dataset_path="made-here",
            is_dataset_tokenized=True,
            streaming=False,
            context_size=CONTEXT,
            prepend_bos=False,
            training_tokens=1600,
            train_batch_size_tokens=64,
            store_batch_size_prompts=8,
            n_batches_in_buffer=4,
            dead_feature_window=5,
            device="cpu",
            seed=3,
            n_checkpoints=0,
            checkpoint_path=None,
            output_path=str(tmp_path / str(ours)),
            logger=LoggingConfig(log_to_wandb=False),
        )
        torch.manual_seed(3)
        runner = LanguageModelSAETrainingRunner(
            cfg, override_dataset=Dataset.from_dict({"tokens": rows}), override_model=model
        )
        assert type(runner.sae) is PAIRS[kind][ours][0]
        trained.append(runner.run())
    for p, q in zip(*(sae.parameters() for sae in trained), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)

    plain = SAE.load_from_disk(tmp_path / "True")
    assert type(plain) is INFERENCE[kind][0]
    mine = INFERENCE[kind][1].load_from_disk(tmp_path / "True")
    x = torch.randn(3, CONTEXT, WIDTH)
    torch.testing.assert_close(mine(x), plain(x))
    torch.testing.assert_close(own.load(tmp_path / "True")(x), plain(x))
