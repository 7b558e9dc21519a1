"""transformers as a runner: extending and rewinding equal one forward without a cache."""

import importlib.util
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from reference_model import load_reference, reference_chunks
from traced_models import VOCABULARY, TracedModels
from transformers import AutoModelForCausalLM

from compiler.contracts.errors import RunError, TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import ProgramModel, TargetOptions
from targets.torch import target as target_module
from targets.torch.target import TorchTarget

TOKENS = [5, 17, 3, 44, 9, 71, 2, 30, 8]


@pytest.fixture
def runner(traced_models: TracedModels) -> Runner:
    return TorchTarget().open(traced_models.checkpoint("gqa"))


@pytest.fixture(scope="module")
def model(traced_models: TracedModels) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        traced_models.checkpoint("gqa").path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def whole(model: torch.nn.Module, tokens: Sequence[int]) -> np.ndarray:
    """The last logits of one forward over all tokens, no cache."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].numpy()


def test_extending_equals_one_forward(runner: Runner, model: torch.nn.Module):
    assert (runner.vocabulary, runner.context, runner.length) == (VOCABULARY, 4096, 0)
    end = 0
    for count in (4, 1, 3, 1):
        found = runner.extend(TOKENS[end : end + count])
        end += count
        assert runner.length == end
        assert (found.dtype, found.shape) == (np.float32, (VOCABULARY,))
        np.testing.assert_allclose(found, whole(model, TOKENS[:end]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bytes_held", [64 << 20, 4 * 4 * VOCABULARY])
def test_reading_rows_equals_extending(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, bytes_held: int
):
    """In one forward, and in forwards of four tokens."""
    monkeypatch.setattr(target_module, "_READ_BYTES", bytes_held)
    runner.extend(TOKENS[:2])
    wanted = [runner.extend([token]) for token in TOKENS[2:]]
    runner.rewind(2)
    found = list(runner.read_rows(TOKENS[2:]))
    assert runner.length == len(TOKENS)
    assert {(row.dtype, row.shape) for row in found} == {(np.dtype(np.float32), (VOCABULARY,))}
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.ptp(np.stack(wanted), axis=0).max() > 0.1  # rows differ


@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_what_is_rewound_is_forgotten(runner: Runner, model: torch.nn.Module, length: int):
    runner.extend(TOKENS[:6])
    runner.extend(TOKENS[6:8])
    runner.rewind(length)
    assert runner.length == length
    found = runner.extend([11, 60])
    wanted = whole(model, [*TOKENS[:length], 11, 60])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    runner.rewind(0)
    np.testing.assert_allclose(runner.extend(TOKENS), whole(model, TOKENS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sliding", "dynamic"])
def test_rewinding_past_a_window_or_a_trained_length(traced_models: TracedModels, name: str):
    """What was longer before shows in nothing: neither in the cache nor in the rotary."""
    folder = traced_models.checkpoint(name).path
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 36).tolist()
    runner = TorchTarget().open(traced_models.checkpoint(name))
    runner.extend(tokens[:9])
    runner.extend(tokens[9:])
    runner.rewind(9)
    again = runner.extend(tokens[20:34])
    chunks = [tokens[:9], tokens[20:34]]
    wanted = reference_chunks(load_reference(folder), chunks)[-1][-1]
    np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gqa", "sliding"])
def test_the_cache_shows_every_position(traced_models: TracedModels, name: str):
    runner, other = (TorchTarget().open(traced_models.checkpoint(name)) for _ in range(2))
    width = traced_models.checkpoint(name).tensors["model.layers.0.self_attn.k_proj.bias"].shape[0]
    runner.extend(TOKENS)
    runner.rewind(3)
    runner.extend([11, 60])
    other.extend([*TOKENS[:3], 11, 60])
    for layer in range(runner.layers):
        pairs = zip(runner.cache_rows(layer, 1, 5), other.cache_rows(layer, 1, 5), strict=True)
        for found, wanted in pairs:
            assert (found.dtype, found.shape) == (np.float32, (4, width))
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
            found.fill(np.nan)
        assert np.isfinite(runner.cache_rows(layer, 1, 5)).all()
    with pytest.raises(AssertionError, match="rows 4 to 6 of 5"):
        runner.cache_rows(0, 4, 6)


@pytest.mark.parametrize(("variant", "error"), [("bf16", 0.1), ("fp16", 0.01)])
def test_variants_compute_in_their_dtype(
    traced_models: TracedModels, model: torch.nn.Module, variant: str, error: float
):
    assert variant in TorchTarget.variants
    runner = TorchTarget().open(traced_models.checkpoint("gqa"), variant=variant)
    assert (runner.layers, runner.vocabulary) == (2, VOCABULARY)
    runner.extend(TOKENS[:6])
    found = runner.extend(TOKENS[6:])
    assert found.dtype == np.float32
    wanted = whole(model, TOKENS)
    assert error / 50 < np.abs(found - wanted).max() < error


def test_another_variant_is_refused(traced_models: TracedModels):
    with pytest.raises(TargetError) as caught:
        TorchTarget().open(traced_models.checkpoint("gqa"), variant="int4")
    assert caught.value.message == "target 'torch' has no variant 'int4'"
    assert caught.value.hint == "it has bf16, fp16, and float32 without a variant"


def test_the_context_is_what_the_rotary_is_stretched_to(traced_models: TracedModels):
    assert TorchTarget().open(traced_models.checkpoint("dynamic")).context == 40


def test_logn_scaling_is_refused(traced_models: TracedModels):
    with pytest.raises(TargetError) as caught:
        TorchTarget().open(traced_models.checkpoint("logn"))
    assert caught.value.message == "transformers has no LogN attention scaling"


def test_logits_are_the_caller_s(runner: Runner):
    first = runner.extend(TOKENS[:3])
    kept = first.copy()
    runner.extend(TOKENS[3:])
    np.testing.assert_array_equal(first, kept)


def test_two_runners_do_not_share_a_cache(traced_models: TracedModels, model: torch.nn.Module):
    one, other = (TorchTarget().open(traced_models.checkpoint("gqa")) for _ in range(2))
    one.extend(TOKENS[:4])
    other.extend(TOKENS[4:7])
    np.testing.assert_allclose(one.extend(TOKENS[4:5]), whole(model, TOKENS[:5]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "no tokens were given"),
        ([3, VOCABULARY], f"token id {VOCABULARY} is outside the vocabulary of {VOCABULARY}"),
        ([-1], f"token id -1 is outside the vocabulary of {VOCABULARY}"),
        ([1] * 4097, "4097 tokens do not fit the context of 4096"),
    ],
)
def test_tokens_that_cannot_be_read(runner: Runner, tokens: list[int], message: str):
    with pytest.raises(RunError) as caught:
        runner.extend(tokens)
    assert caught.value.message == message
    assert runner.length == 0


def test_threads_are_torch_s(traced_models: TracedModels):
    before = torch.get_num_threads()
    try:
        TorchTarget().open(traced_models.checkpoint("gqa"), threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# -- the target


def test_it_builds_nothing(traced_models: TracedModels):
    (error,) = TorchTarget().constraints(TargetOptions(dtype="fp32", window=16, context=32), {})
    assert error.message == "target 'torch' runs models, it does not build bundles"
    assert error.hint is not None
    assert "compare" in error.hint
    with pytest.raises(TargetError) as caught:
        TorchTarget().open(
            ProgramModel(traced_models.programs("gqa"), traced_models.checkpoint("gqa"))
        )
    assert caught.value.message == "target 'torch' opens checkpoints, not ProgramModel"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    assert TorchTarget().probe().can_run
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else "x")
    probe = TorchTarget().probe()
    assert (probe.can_build, probe.can_run) == (False, False)
    assert probe.missing == ("torch is not installed: pip install torch",)
