"""Observing transformers: watching changes nothing, and the model goes on with what is put."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from traced_models import TracedModels
from transformers.models.qwen2 import modeling_qwen2

from compiler.contracts.runner import Runner
from compiler.contracts.taps import LAYER_RESULTS, Observer, Tap, taps_of
from targets.torch.target import TorchTarget

PROMPT, NEXT = [5, 17, 3, 44, 9, 71, 2, 30, 8], 25
LAYERS = 2

Rows = Mapping[Tap, np.ndarray]
Put = Callable[[Tap, np.ndarray], np.ndarray | None]


class Recorder(Observer):
    """Remembers, by call, what it saw, and puts what `put` says."""

    def __init__(self, put: Put = lambda tap, rows: None, points: frozenset[str] | None = None):
        self.calls: list[dict[Tap, np.ndarray]] = []
        self._put = put
        if points is not None:
            self.points = points

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        # One that comes again begins another call.
        if not self.calls or tap in self.calls[-1]:
            self.calls.append({})
        self.calls[-1][tap] = rows
        return self._put(tap, rows)


def opened(models: TracedModels, name: str = "own-head-dim", variant: str = "") -> Runner:
    return TorchTarget().open(models.checkpoint(name, layers=LAYERS), variant=variant)


def assert_same(found: Rows, wanted: Rows, taps: Sequence[Tap] = taps_of(LAYERS)):
    for tap in taps:
        np.testing.assert_array_equal(found[tap], wanted[tap], err_msg=str(tap))


def watched(runner: Runner, observer: Observer) -> list[np.ndarray]:
    """The logits of the prompt and of the token after it."""
    runner.observe(observer)
    return [runner.extend(PROMPT), runner.extend([NEXT])]


def test_only_the_points_asked_for_are_shown(traced_models: TracedModels):
    points = frozenset({"k_rot", "values", "resid2"})
    recorder = Recorder(points=points)
    watched(opened(traced_models), recorder)
    assert [list(call) for call in recorder.calls] == [list(taps_of(LAYERS, points))] * 2


# -- watching changes nothing


@pytest.mark.parametrize("variant", ["", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["gqa", "qwen3", "llama", "sliding"])
def test_watching_leaves_every_bit(traced_models: TracedModels, name: str, variant: str):
    plain = opened(traced_models, name, variant)
    wanted = [plain.extend(PROMPT), plain.extend([NEXT])]
    for put in (lambda tap, rows: None, lambda tap, rows: rows):
        np.testing.assert_array_equal(
            watched(opened(traced_models, name, variant), Recorder(put)), wanted
        )


def test_rows_are_the_observer_s_own(traced_models: TracedModels):
    def spoil(_tap: Tap, rows: np.ndarray) -> None:
        rows.fill(np.nan)

    plain = opened(traced_models).extend(PROMPT)
    np.testing.assert_array_equal(watched(opened(traced_models), Recorder(spoil))[0], plain)


def test_none_ends_it(traced_models: TracedModels):
    recorder = Recorder()
    runner = opened(traced_models)
    rotate = modeling_qwen2.apply_rotary_pos_emb
    watched(runner, recorder)
    runner.observe(None)
    runner.rewind(3)
    runner.extend(PROMPT)
    assert len(recorder.calls) == 2
    assert modeling_qwen2.apply_rotary_pos_emb is rotate


@pytest.mark.parametrize("stop", ["embed", "model.layers.1/q_rot", "model.layers.0/keys", "logits"])
def test_an_observer_that_raises_leaves_nothing_behind(traced_models: TracedModels, stop: str):
    def refuse(tap: Tap, _rows: np.ndarray) -> None:
        if str(tap) == stop:
            raise LookupError(stop)

    rotate = modeling_qwen2.apply_rotary_pos_emb
    runner = opened(traced_models)
    runner.extend(PROMPT[:4])
    runner.observe(Recorder(refuse))
    with pytest.raises(LookupError, match=stop):
        runner.extend(PROMPT[4:])
    assert modeling_qwen2.apply_rotary_pos_emb is rotate
    assert runner.length == 4
    runner.observe(None)
    other = opened(traced_models)
    other.extend(PROMPT[:4])
    np.testing.assert_array_equal(runner.extend(PROMPT[4:]), other.extend(PROMPT[4:]))


def test_an_observer_may_run_another_model_of_the_family(traced_models: TracedModels):
    inner = opened(traced_models, "gqa")

    def run(_tap: Tap, _rows: np.ndarray) -> None:
        inner.rewind(0)
        inner.extend(PROMPT[:2])

    alone, busy = Recorder(), Recorder(run)
    watched(opened(traced_models), alone)
    watched(opened(traced_models), busy)
    for wanted, found in zip(alone.calls, busy.calls, strict=True):
        assert list(found) == list(wanted)
        assert_same(found, wanted)


# -- what is put in a tap's place

# Who reads a tap first.
READERS = {
    "embed": "norm1",
    "norm1": "q",
    "q": "q_rot",
    "k": "k_rot",
    "v": "values",
    "q_rot": "attn",
    "k_rot": "keys",
    "keys": "attn",
    "values": "attn",
    "attn": "o",
    "o": "resid1",
    "resid1": "norm2",
    "norm2": "gate",
    "gate": "act",
    "up": "act",
    "act": "down",
    "down": "resid2",
    "resid2": "norm",
    "norm": "logits",
}


@pytest.mark.parametrize("point", READERS)
def test_who_reads_a_tap_reads_what_was_put(traced_models: TracedModels, point: str):
    order = taps_of(LAYERS)
    # The last of its kind, and the first reader after it.
    place = max(index for index, tap in enumerate(order) if tap.point == point)
    reader = next(tap for tap in order[place:] if tap.point == READERS[point])
    plain = Recorder()
    backwards = Recorder(lambda tap, rows: rows[:, ::-1] if tap == order[place] else None)
    watched(opened(traced_models, "qwen3"), plain)
    watched(opened(traced_models, "qwen3"), backwards)
    wanted, found = plain.calls[0], backwards.calls[0]
    assert_same(found, wanted, order[: place + 1])
    assert np.abs(found[reader] - wanted[reader]).max() > 1e-2


def test_logits_that_are_put_are_what_is_returned(traced_models: TracedModels):
    recorder = Recorder(lambda tap, rows: -rows if tap.point == "logits" else None)
    found = watched(opened(traced_models), recorder)[1]
    np.testing.assert_array_equal(found, -recorder.calls[1][Tap(None, "logits")][0])


def test_queries_of_zero_attend_evenly(traced_models: TracedModels):
    query, plain = Tap(1, "q"), Recorder()
    # Read-only, as arrays mapped from a file are.
    evenly = Recorder(lambda tap, rows: np.broadcast_to(0.0, rows.shape) if tap == query else None)
    watched(opened(traced_models, "mha"), plain)
    watched(opened(traced_models, "mha"), evenly)
    order = taps_of(LAYERS)
    assert_same(evenly.calls[0], plain.calls[0], order[: order.index(query) + 1])
    values = evenly.calls[0][Tap(1, "values")]
    means = np.cumsum(values, axis=0) / np.arange(1, len(PROMPT) + 1)[:, None]
    np.testing.assert_allclose(evenly.calls[0][Tap(1, "attn")], means, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "added", "total"),
    [
        (Tap(None, "embed"), Tap(0, "o"), Tap(0, "resid1")),
        (Tap(0, "resid1"), Tap(0, "down"), Tap(0, "resid2")),
        (Tap(0, "resid2"), Tap(1, "o"), Tap(1, "resid1")),
    ],
    ids=str,
)
def test_the_residual_stream_goes_on_from_what_was_put(
    traced_models: TracedModels, changed: Tap, added: Tap, total: Tap
):
    recorder = Recorder(lambda tap, rows: rows + 3 if tap == changed else None)
    watched(opened(traced_models), recorder)
    for call in recorder.calls:
        np.testing.assert_array_equal(call[total], call[changed] + 3 + call[added])


def test_the_cache_holds_what_was_put(traced_models: TracedModels):
    points = frozenset({"keys", "values"})
    runner, recorder = opened(traced_models), Recorder(lambda _tap, rows: -2 * rows, points)
    watched(runner, recorder)
    for layer in range(LAYERS):
        for rows, point in zip(runner.cache_rows(layer, 0, 10), ("keys", "values"), strict=True):
            put = [-2 * call[Tap(layer, point)] for call in recorder.calls]
            np.testing.assert_array_equal(rows, np.concatenate(put))


@pytest.mark.parametrize("variant", ["", "bf16"])
@pytest.mark.parametrize("points", [Observer.points, frozenset(LAYER_RESULTS)], ids=["all", "few"])
def test_another_run_s_taps_make_it_that_run(
    traced_models: TracedModels, points: frozenset[str], variant: str
):
    """Bit for bit, and so does the next call, which reads the cache that they left."""
    recorder = Recorder()
    wanted = watched(opened(traced_models, variant=variant), recorder)
    forced = opened(traced_models, variant=variant)
    forced.observe(Recorder(lambda tap, _rows: recorder.calls[0][tap], points))
    np.testing.assert_array_equal(forced.extend(PROMPT[::-1]), wanted[0])
    forced.observe(None)
    np.testing.assert_array_equal(forced.extend([NEXT]), wanted[1])


def test_another_shape_is_our_own_mistake(traced_models: TracedModels):
    runner = opened(traced_models)
    runner.observe(Recorder(lambda _tap, rows: rows[:1]))
    with pytest.raises(AssertionError, match=r"\(1, 64\) in place of \(9, 64\)"):
        runner.extend(PROMPT)
