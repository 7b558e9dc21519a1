"""Random Qwen2 models of many shapes, built and run, against transformers in float32."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from built_bundles import TINY, BuiltBundles, TinyModel
from reference_model import load_reference, reference_logits
from transformers import PreTrainedModel

from compiler.contracts.errors import RunError
from compiler.contracts.runner import WindowedRunner
from compiler.stages.execute import GenerateOptions, Session
from compiler.text import Message
from compiler.workflows.run import open_session
from targets.llvm.features import detect, has_tiles

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
STEPS = 16
HAS_TILES = has_tiles(detect())
# C is 1.5 P in all of them.
MODELS = [
    TinyModel("mha-tied-one-layer", heads=4, kv_heads=4, layers=1, tied=True),
    TinyModel("gqa-7-to-1", hidden=112, heads=14, kv_heads=2, intermediate=80),
    TinyModel("three-heads", hidden=60, heads=3, kv_heads=3, tied=True),
    TinyModel("six-heads-on-three", hidden=64, heads=6, kv_heads=3, head_dim=20, vocabulary=130),
    TinyModel("true-vocabulary", vocabulary=151936, layers=1, tied=True),
    # Narrow weights with float32 arithmetic and caches, which transformers has.
    TinyModel(
        "bf16",
        stored="bfloat16",
        dtype="bf16",
        tied=True,
        dropped=("store-kv-cache", *(("round-activations",) if HAS_TILES else ())),
    ),
    # Logits of every token, or of the last row: a padded window must not be asked for its padding.
    TinyModel("no-slice", kept="all"),
    TinyModel("slice-of-the-last-row", kept="last"),
    TinyModel(
        "fp16",
        stored="float16",
        dtype="fp16",
        hidden=56,
        heads=7,
        kv_heads=1,
        dropped=("store-kv-cache",),
    ),
]
PREFILL_ONLY = TinyModel("prefill-only", context=None)


@pytest.fixture(scope="module")
def references(built_bundles: BuiltBundles) -> Iterator[dict[TinyModel, PreTrainedModel]]:
    """transformers' models, loaded when they are asked for."""

    class Loaded(dict[TinyModel, PreTrainedModel]):
        def __missing__(self, model: TinyModel) -> PreTrainedModel:
            self[model] = load_reference(built_bundles.checkpoint(model))
            return self[model]

    found = Loaded()
    yield found
    found.clear()


def draw(model: TinyModel, length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, model.vocabulary, length).tolist()


def greedy(session: Session, prompt: Sequence[int], steps: int) -> tuple[list[int], np.ndarray]:
    """Tokens, and the logits that each was chosen from."""
    options = GenerateOptions(max_tokens=steps, keep_logits=True)
    generation = session.complete(prompt, options)
    assert generation.logits is not None
    return list(generation.tokens), generation.logits


def assert_equal_to(
    reference: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int], logits: np.ndarray
) -> None:
    """Each token is transformers' own choice after those before it, from the same logits."""
    wanted = reference_logits(reference, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    assert logits.shape == wanted.shape
    assert np.abs(logits - wanted).max() < TOLERANCE
    assert tokens == wanted.argmax(axis=1).tolist()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_prefill_and_decode_equal_transformers(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel], model: TinyModel
) -> None:
    reference = references[model]
    with open_session(built_bundles.bundle(model)) as session:
        # A whole window, then past grows to C - 1; a padded one; two windows; a window and a token.
        for length, steps in ((32, 17), (9, 17), (40, 9), (33, 2), (1, 3)):
            prompt = draw(model, length)
            tokens, logits = greedy(session, prompt, steps)
            assert len(tokens) == steps
            assert_equal_to(reference, prompt, tokens, logits)


def test_the_cache_is_filled_to_its_last_position_and_not_beyond(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel]
) -> None:
    prompt = draw(TINY, 32)
    with open_session(built_bundles.bundle()) as session:
        tokens, logits = greedy(session, prompt, 100)
        assert session.runner.length == session.runner.context == 48
        assert session.last is not None
        assert session.last.finish_reason == "length"
        with pytest.raises(RunError, match="49 tokens do not fit the context of 48"):
            session.runner.extend([1])
    assert len(tokens) == STEPS + 1  # the last one is chosen at past C - 1 and never fed back
    assert_equal_to(references[TINY], prompt, tokens, logits)


def test_a_prompt_as_long_as_the_context_runs_in_prefill_windows(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel]
) -> None:
    prompt = draw(TINY, 48)
    with open_session(built_bundles.bundle()) as session:
        tokens, logits = greedy(session, prompt, 8)
    assert len(tokens) == 1
    assert_equal_to(references[TINY], prompt, tokens, logits)


@pytest.mark.parametrize("past", [0, 31, 32, 46])
def test_one_valid_token_in_a_padded_window(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel], past: int
) -> None:
    prompt = draw(TINY, 48)
    wanted = reference_logits(references[TINY], prompt[: past + 2])
    with open_session(built_bundles.bundle()) as session:
        runner = session.runner
        assert isinstance(runner, WindowedRunner)
        if past:
            runner.extend(prompt[:past])
        window = np.zeros((1, 32), np.int64)
        window[0, 0] = prompt[past]
        logits = runner.step("prefill", window, past=past, valid=1)
        runner.length += 1
        after = runner.extend(prompt[past + 1 : past + 2])
    assert np.abs(logits - wanted[past]).max() < TOLERANCE
    # The padding's rows did not enter the cache.
    assert np.abs(after - wanted[past + 1]).max() < TOLERANCE


def test_a_second_chat_turn_ends_near_the_context(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel]
) -> None:
    options = GenerateOptions(max_tokens=10, keep_logits=True)
    messages: list[Message] = [{"role": "user", "content": " ".join(f"t{n}" for n in range(3, 20))}]
    with open_session(built_bundles.bundle()) as session:
        answer = "".join(token.text for token in session.chat(messages, options))
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": "t7 t9"})
        prompt = session.text.chat(messages)
        read: list[int] = []
        extend = session.runner.extend
        session.runner.extend = lambda tokens: read.append(len(tokens)) or extend(tokens)
        # However long the first answer was, this one runs until the context is full.
        for _ in session.chat(messages, GenerateOptions(max_tokens=100, keep_logits=True)):
            pass
        generation = session.last
    assert generation is not None
    assert generation.logits is not None
    assert generation.prompt_tokens == len(prompt) >= 30
    assert read[0] < len(prompt) / 2  # the first turn was not read again
    assert generation.finish_reason == "length"
    assert len(prompt) + len(generation.tokens) == 49
    assert_equal_to(references[TINY], prompt, list(generation.tokens), generation.logits)


def test_rewinding_forgets(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel]
) -> None:
    first, second = draw(TINY, 40), draw(TINY, 41)
    with open_session(built_bundles.bundle()) as session:
        session.runner.extend(first)
        session.runner.rewind(10)
        logits = session.runner.extend(second[10:])
    wanted = reference_logits(references[TINY], [*first[:10], *second[10:]])[-1]
    assert np.abs(logits - wanted).max() < TOLERANCE


def test_a_bundle_of_prefill_alone(
    built_bundles: BuiltBundles, references: dict[TinyModel, PreTrainedModel]
) -> None:
    bundle = built_bundles.bundle(PREFILL_ONLY)
    assert sorted(path.name for path in bundle.glob("*_rank0")) == ["prefill_32_rank0"]
    prompt = draw(PREFILL_ONLY, 27)
    with open_session(bundle) as session:
        tokens, logits = greedy(session, prompt, 100)
        with pytest.raises(RunError, match="33 tokens, the context holds 32"):
            session.generate(draw(PREFILL_ONLY, 33), GenerateOptions(max_tokens=1))
    assert len(tokens) == 6
    assert_equal_to(references[PREFILL_ONLY], prompt, tokens, logits)


@pytest.mark.parametrize("model", [MODELS[0], MODELS[5]], ids=lambda model: model.name)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_bias_that_is_dropped_would_be_noticed(
    references: dict[TinyModel, PreTrainedModel], model: TinyModel, name: str
) -> None:
    """The biases are not zero, and each of them shows in the logits well above the tolerance."""
    reference, prompt = references[model], draw(model, 20)
    bias = reference.get_parameter(f"model.layers.0.self_attn.{name}_proj.bias")
    kept = bias.detach().clone()
    assert torch.count_nonzero(kept) == kept.numel()
    whole = reference_logits(reference, prompt)[-1]
    with torch.no_grad():
        bias.zero_()
        without = reference_logits(reference, prompt)[-1]
        bias.copy_(kept)
    assert np.abs(whole - without).max() > 10 * TOLERANCE
