"""Programs after any pass, run window by window and token by token, against transformers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from reference_model import load_reference, reference_chunks, reference_logits
from staged_models import POINTS, Recorder, observed, staged
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import PassError, RunError, TargetError
from compiler.contracts.pass_base import Pass
from compiler.contracts.program import ProgramSet
from compiler.contracts.taps import Tap, taps_of
from compiler.contracts.target_base import ProgramModel
from passes.fold_mask import FoldMask
from passes.insert_strided_slice import InsertStridedSlice
from targets.onnxruntime.runner import OnnxRuntimeRunner

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT).tolist()
LAYERS = 2


def opened(traced_models: TracedModels, name: str, passes: Sequence[Pass]) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(staged(traced_models, name, passes))


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (np.float32, (VOCABULARY,))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "point"),
    [
        *(("gqa", point) for point in ("trace", "fold-mask", "plan-kv-cache", "llvm", "all")),
        *((name, point) for name in ("mha", "qwen3") for point in ("trace", "llvm")),
        *(
            pytest.param(name, point, marks=pytest.mark.slow)
            for name in ("llama", "sliding", "qwen3-sliding")
            for point in ("trace", "fold-mask", "plan-kv-cache", "llvm", "all")
        ),
    ],
)
def test_logits_are_transformers(traced_models: TracedModels, name: str, point: str):
    """Prompts shorter than a window, as long, and longer, then token by token."""
    runner = opened(traced_models, name, POINTS[point])
    checked = (runner.window, runner.context, runner.vocabulary, runner.layers)
    assert checked == (WINDOW, CONTEXT, VOCABULARY, LAYERS)
    wanted = reference_logits(load_reference(traced_models.checkpoint(name).path), TOKENS)
    for length in (WINDOW - 7, WINDOW, WINDOW + 7):
        runner.rewind(0)
        assert_close(runner.extend(TOKENS[:length]), wanted[length - 1])
        for end in range(length, length + 3):
            assert_close(runner.extend(TOKENS[end : end + 1]), wanted[end])
    runner.extend(TOKENS[runner.length : CONTEXT - 1])
    assert_close(runner.extend(TOKENS[CONTEXT - 1 :]), wanted[-1])
    with pytest.raises(RunError):
        runner.extend([1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@pytest.mark.parametrize("point", ["trace", "llvm"])
def test_a_rotary_that_depends_on_the_length(traced_models: TracedModels, name: str, point: str):
    runner = opened(traced_models, name, POINTS[point])
    model = load_reference(traced_models.checkpoint(name).path)
    chunks = [TOKENS[:WINDOW], TOKENS[WINDOW:23], TOKENS[23:24]]
    for chunk, wanted in zip(chunks, reference_chunks(model, chunks), strict=True):
        assert_close(runner.extend(chunk), wanted[-1])


@pytest.mark.parametrize("point", ["trace", "plan-kv-cache", "llvm"])
def test_reading_rows_equals_extending(traced_models: TracedModels, point: str):
    """Behind a first token, so that windows do not begin at their multiples; `llvm` has a slice."""
    runner = opened(traced_models, "gqa", POINTS[point])
    assert runner.has_every_row == (point != "llvm")
    runner.extend(TOKENS[:1])
    wanted = [runner.extend([token]) for token in TOKENS[1:]]
    runner.rewind(1)
    found = list(runner.read_rows(TOKENS[1:]))
    assert runner.length == CONTEXT
    assert {(row.dtype, row.shape) for row in found} == {(np.dtype(np.float32), (VOCABULARY,))}
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("point", ["trace", "fold-mask", "llvm", "int8 cache", "bfloat16 cache"])
def test_what_is_rewound_is_forgotten(traced_models: TracedModels, point: str):
    runner, fresh = (opened(traced_models, "gqa", POINTS[point]) for _ in range(2))
    runner.extend(TOKENS[:20])
    runner.extend(TOKENS[20:21])
    for length in (18, 5, 0):
        runner.rewind(length)
        fresh.rewind(0)
        if length:
            fresh.extend(TOKENS[:length])
        np.testing.assert_allclose(
            runner.extend(TOKENS[30:33]), fresh.extend(TOKENS[30:33]), rtol=0, atol=1e-5
        )
        assert runner.length == length + 3


@pytest.mark.parametrize("point", ["trace", "llvm", "int8 cache", "bfloat16 cache"])
def test_cache_rows_are_what_attention_reads(traced_models: TracedModels, point: str):
    runner = opened(traced_models, "qwen3", POINTS[point])
    _, first = observed(runner, TOKENS[:10])
    _, second = observed(runner, TOKENS[10:11])
    for layer in range(LAYERS):
        for kind, rows in zip(("keys", "values"), runner.cache_rows(layer, 8, 11), strict=True):
            tap = Tap(layer, kind)
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, np.concatenate([first[tap][8:], second[tap]]))
            rows[:] = np.nan
    assert not np.isnan(runner.cache_rows(0, 0, 11)).any()


@pytest.mark.parametrize("point", ["trace", "llvm", "bfloat16", "int8 cache", "bfloat16 cache"])
def test_watching_changes_no_logit(traced_models: TracedModels, point: str):
    """Over windows and single tokens, watched or not, from one call to the next."""
    runner, watched = (opened(traced_models, "gqa", POINTS[point]) for _ in range(2))
    recorder = Recorder()
    for turn, length in enumerate((20, 1, 3, 1)):
        watched.observe(recorder if turn != 2 else None)
        tokens = TOKENS[runner.length : runner.length + length]
        np.testing.assert_array_equal(watched.extend(tokens), runner.extend(tokens))
    # Two windows and two single tokens were watched.
    assert [tap for tap, _ in recorder.seen] == [*taps_of(LAYERS)] * 4
    widths = [len(rows) for tap, rows in recorder.seen if tap.point == "embed"]
    assert widths == [WINDOW, 20 - WINDOW, 1, 1]


def test_without_decode_and_with_the_last_row_s_logits_windows_must_be_full(
    traced_models: TracedModels,
):
    model = staged(traced_models, "mha", (InsertStridedSlice(position="last"),))
    prefill = ProgramSet({"prefill": model.programs.programs["prefill"]})
    runner = OnnxRuntimeRunner(replace(model, programs=prefill))
    assert (runner.has_decode, runner.takes_padding) == (False, False)
    wanted = reference_logits(load_reference(model.checkpoint.path), TOKENS[:32])

    assert_close(runner.extend(TOKENS[:32]), wanted[-1])
    with pytest.raises(RunError, match="3 tokens do not fill windows of 16"):
        runner.extend(TOKENS[:3])


def test_both_phases_read_a_weight_once(traced_models: TracedModels):
    model = staged(traced_models, "mha", ())
    read: list[str] = []

    class Counting(type(model.checkpoint)):
        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            read.append(name)
            return super().rows(name, start, stop)

    checkpoint = Counting(**vars(model.checkpoint))
    OnnxRuntimeRunner(ProgramModel(model.programs, checkpoint)).extend(TOKENS[:3])
    # Tied: the embedding is read as it is, and transposed for the head.
    assert sorted(set(read)) == sorted(checkpoint.tensors)
    assert len(read) == len(checkpoint.tensors) + 1


def test_phases_of_two_signatures_are_refused(traced_models: TracedModels):
    model = staged(traced_models, "mha", ())
    planned = staged(traced_models, "mha", POINTS["llvm"]).programs.programs["decode"]
    mixed = ProgramSet({**model.programs.programs, "decode": planned})
    with pytest.raises(TargetError) as caught:
        OnnxRuntimeRunner(ProgramModel(mixed, model.checkpoint))
    assert caught.value.message == "the caches of prefill and decode differ in shape"


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("domain", [None, "nowhere"])
def test_a_broken_graph_is_said_with_its_node(
    traced_models: TracedModels, domain: str | None, is_watched: bool
):
    model = staged(traced_models, "mha", (FoldMask(),))
    prefill = model.programs.programs["prefill"]
    broken = next(node for node in prefill.graph.nodes if node.op == "Softmax")
    broken.op, broken.domain = "Softmaxx", domain
    runner = OnnxRuntimeRunner(model)
    runner.observe(Recorder() if is_watched else None)
    with pytest.raises(PassError) as caught:
        runner.extend(TOKENS[:4])
    assert caught.value.where == "prefill"
    assert caught.value.code == "not-runnable"
    assert broken.name in caught.value.message
    # The other phase is whole.
    runner.rewind(0)
    whole = OnnxRuntimeRunner(staged(traced_models, "mha", (FoldMask(),)))
    np.testing.assert_array_equal(runner.extend(TOKENS[:1]), whole.extend(TOKENS[:1]))


def test_a_growing_cache_is_not_asked_for_more_than_it_holds(traced_models: TracedModels):
    """A semantic check looks beyond what was read, which a growing cache does not have."""
    runner = opened(traced_models, "gqa", POINTS["trace"])
    runner.extend(TOKENS[:5])
    runner.length = CONTEXT
    with pytest.raises(TargetError, match="the cache of layer 1 holds 5 positions, not 6"):
        runner.cache_rows(1, 5, 6)
