"""A program in pieces computes the same bits, and goes on with what is put in a tap's place."""

import numpy as np
import pytest
from program_runs import random_parameters, traced_inputs
from staged_models import POINTS, Recorder, observed, staged
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import PassError
from compiler.contracts.program import Phase
from compiler.contracts.taps import LAYER_RESULTS, Tap, taps_of
from compiler.numerics.feeds import Lengths, program_feeds
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.segments import SegmentedRun
from targets.onnxruntime.runner import OnnxRuntimeRunner

LAYERS = 2
ONE, OTHER = (np.random.default_rng(seed).integers(0, VOCABULARY, 9).tolist() for seed in (1, 2))
AFTER_RESID1 = ("resid1", "norm2", "gate", "up", "act", "down", "resid2")


class Results(Recorder):
    """Asks for less."""

    points = frozenset(LAYER_RESULTS)


@pytest.mark.parametrize("point", list(POINTS))
@pytest.mark.parametrize(
    ("phase", "past", "valid"), [("prefill", 0, 16), ("prefill", 5, 3), ("decode", 7, 1)]
)
def test_watching_changes_no_bit(
    traced_models: TracedModels, point: str, phase: Phase, past: int, valid: int
):
    program = staged(traced_models, "qwen3", POINTS[point]).programs.programs[phase]
    feeds = program_feeds(program, Lengths(past, valid), vocabulary=VOCABULARY)
    feeds |= random_parameters(program)
    recorder = Recorder()

    wanted = ReferenceSession(program.model()).run(feeds)
    found = SegmentedRun(program).run(feeds, recorder, past=past, valid=valid)

    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert [tap for tap, _ in recorder.seen] == list(taps_of(LAYERS))
    assert {len(rows) for tap, rows in recorder.seen if tap.point != "logits"} == {valid}


def test_an_observer_sees_what_it_asks_for(traced_models: TracedModels):
    program = traced_models.programs("mha").programs["prefill"]
    feeds = traced_inputs(program, past=0, valid=4, vocabulary=VOCABULARY)
    results = Results()
    SegmentedRun(program).run(feeds | random_parameters(program), results, past=0, valid=4)
    assert [tap for tap, _ in results.seen] == list(taps_of(LAYERS, frozenset(LAYER_RESULTS)))


@pytest.mark.parametrize("point", ["trace", "slice", "llvm", "all", "bfloat16"])
def test_a_replaced_stream_gives_the_other_run_s_rest(traced_models: TracedModels, point: str):
    model = staged(traced_models, "gqa", POINTS[point])
    _, other = observed(OnnxRuntimeRunner(model), OTHER)
    logits, before = observed(OnnxRuntimeRunner(model), ONE)
    stream = Tap(1, "resid1")

    forced_logits, forced = observed(OnnxRuntimeRunner(model), ONE, {stream: other[stream]})
    for tap in taps_of(LAYERS):
        is_after = tap.point in AFTER_RESID1 if tap.layer == 1 else tap.point in ("norm", "logits")
        # It is shown before it is replaced.
        wanted = other if is_after and tap != stream else before
        np.testing.assert_array_equal(forced[tap], wanted[tap], err_msg=str(tap))
    np.testing.assert_array_equal(forced_logits, other[Tap(None, "logits")][0])
    assert not np.array_equal(forced_logits, logits)


@pytest.mark.parametrize("tap", [Tap(0, "q_rot"), Tap(0, "keys"), Tap(1, "values"), Tap(0, "act")])
@pytest.mark.parametrize("point", ["trace", "fold-mask", "all"])
def test_each_layout_can_be_replaced(traced_models: TracedModels, tap: Tap, point: str):
    """The first layer's attention over other keys is not the one over its own."""
    model = staged(traced_models, "qwen3", POINTS[point])
    runner = OnnxRuntimeRunner(model)
    runner.extend(ONE[:4])
    _, before = observed(runner, ONE[4:])
    runner.rewind(4)
    instead = before[tap][::-1].copy()
    _, forced = observed(runner, ONE[4:], {tap: instead})
    after = taps_of(LAYERS)[taps_of(LAYERS).index(tap) + 1 :]
    reached = Tap(tap.layer, "down" if tap.point == "act" else "attn")
    assert reached in after
    assert not np.array_equal(forced[reached], before[reached])
    if tap.point in ("keys", "values"):
        assert tap.layer is not None
        rows = dict(zip(("keys", "values"), runner.cache_rows(tap.layer, 4, 9), strict=True))
        np.testing.assert_array_equal(rows[tap.point], instead)


@pytest.mark.parametrize("point", ["trace", "all"])
def test_a_replaced_embedding_is_another_prompt_caches_included(
    traced_models: TracedModels, point: str
):
    model = staged(traced_models, "mha", POINTS[point])
    plain, forced = OnnxRuntimeRunner(model), OnnxRuntimeRunner(model)
    _, other = observed(plain, OTHER)
    logits, _ = observed(forced, ONE, {Tap(None, "embed"): other[Tap(None, "embed")]})

    np.testing.assert_array_equal(logits, other[Tap(None, "logits")][0])
    np.testing.assert_array_equal(forced.extend([3]), plain.extend([3]))


def test_a_replacement_of_another_shape_is_our_bug(traced_models: TracedModels):
    model = staged(traced_models, "mha", ())
    with pytest.raises(AssertionError, match=r"model.layers.0/q: \(2, 64\), not \(9, 64\)"):
        observed(OnnxRuntimeRunner(model), ONE, {Tap(0, "q"): np.zeros((2, 64), np.float32)})


def test_memory_holds_one_layer(traced_models: TracedModels, monkeypatch: pytest.MonkeyPatch):
    """No piece is given an activation of a layer other than its own and the stream between."""
    program = staged(traced_models, "gqa", POINTS["llvm"], layers=4).programs.programs["prefill"]
    feeds = program_feeds(program, Lengths(0, 9), vocabulary=VOCABULARY)
    feeds |= random_parameters(program)
    held: list[int] = []
    run = ReferenceSession.run

    def counted(session: ReferenceSession, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        held.append(len([n for n in given if n not in feeds and not n.startswith("present.")]))
        return run(session, given)

    monkeypatch.setattr(ReferenceSession, "run", counted)
    SegmentedRun(program).run(feeds, Results(), past=0, valid=9)
    # cos, sin, the residual stream, and at most q, k, v or their like.
    assert max(held) <= 7
    assert len(held) > 4 * 8


def test_a_tensor_of_unknown_type_cannot_be_cut_at(traced_models: TracedModels):
    program = traced_models.programs("mha").programs["prefill"]
    for node in program.graph.nodes:
        if node.op == "Sigmoid":
            node.op = "Unheard"
    with pytest.raises(PassError) as caught:
        SegmentedRun(program)
    assert caught.value.code == "not-runnable"
    assert caught.value.message == (
        "model.layers.0.mlp/Sigmoid (Unheard) gives what no type is known of"
    )
