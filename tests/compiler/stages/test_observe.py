"""A run by tap on a scripted runner: every error has the place and the size that was planted."""

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted_runner import Script, ScriptedRunner, hidden

from compiler.comparing.tap_faults import first_fault, largest_local
from compiler.contracts.comparison import TapComparison
from compiler.contracts.runner import Runner
from compiler.contracts.taps import LAYER_TAPS, Tap, taps_of
from compiler.stages.observe import (
    ALL_POINTS,
    LAYER_POINTS,
    Observed,
    calls_of,
    compare_saved,
    hold_against,
    record,
)
from compiler.tap_store import TapFolder

RIGHT = Script()
CALLS = calls_of([((1, 2, 3, 4, 5, 6), (7, 8)), ((9,), (3,))], window=4)
LIMIT = 1e-6


def plus(error: float, *taps: Tap) -> Script:
    """A fault of one size at each tap."""
    return replace(RIGHT, faults=dict.fromkeys(taps, lambda value: value + np.float32(error)))


def recorded(
    folder: Path, script: Script = RIGHT, points: frozenset[str] = ALL_POINTS
) -> TapFolder:
    store = TapFolder(folder / "reference")
    record(ScriptedRunner(script), CALLS, store, points=points)
    return store


def held(
    folder: Path,
    script: Script,
    *,
    reference: Script = RIGHT,
    points: frozenset[str] = ALL_POINTS,
    recompute: Script | None = None,
    max_rel: float = 1e-4,
) -> Observed:
    opened: list[ScriptedRunner] = []

    def open_recompute() -> Runner:
        assert recompute is not None
        opened.append(ScriptedRunner(recompute))
        return opened[-1]

    found = hold_against(
        recorded(folder, reference, points),
        ScriptedRunner(script),
        CALLS,
        level_points=points,
        max_local=LIMIT,
        max_rel=max_rel,
        scratch=TapFolder(folder / "scratch"),
        open_recompute=None if recompute is None else open_recompute,
    )
    assert all(runner.is_closed for runner in opened)
    return found


def by_tap(taps: Sequence[TapComparison]) -> dict[str, TapComparison]:
    return {str(Tap(tap.layer, tap.point)): tap for tap in taps}


def local_errors(taps: Sequence[TapComparison]) -> list[str]:
    """Taps whose local error is more than nothing."""
    return [
        name for name, tap in by_tap(taps).items() if tap.local is None or tap.local.max_abs != 0
    ]


def accumulated_errors(taps: Sequence[TapComparison]) -> list[str]:
    return [name for name, tap in by_tap(taps).items() if tap.accumulated.max_abs != 0]


def test_calls_read_windows_and_then_single_tokens() -> None:
    assert [(call.name, call.tokens, call.past) for call in CALLS] == [
        ("prompt0/prefill0", (1, 2, 3, 4), 0),
        ("prompt0/prefill1", (5, 6), 4),
        ("prompt0/step1", (7,), 6),
        ("prompt0/step2", (8,), 7),
        ("prompt1/prefill0", (9,), 0),
        ("prompt1/step1", (3,), 1),
    ]


@pytest.mark.parametrize("points", [ALL_POINTS, LAYER_POINTS], ids=["tap", "layer"])
def test_equal_runners_differ_nowhere(tmp_path: Path, points: frozenset[str]) -> None:
    found = held(tmp_path, RIGHT, points=points)
    assert [Tap(tap.layer, tap.point) for tap in found.taps] == list(taps_of(4, points))
    assert {tap.status for tap in found.taps} == {"pass"}
    assert accumulated_errors(found.taps) == local_errors(found.taps) == []
    assert (found.missing, found.findings, found.refusal) == ((), (), "")
    assert first_fault(found.taps) is None


@pytest.mark.parametrize("point", LAYER_TAPS)
def test_a_fault_is_local_where_it_is_and_accumulates_behind(tmp_path: Path, point: str) -> None:
    found = held(tmp_path, plus(0.25, Tap(2, point)))
    place = f"model.layers.2/{point}"
    assert local_errors(found.taps) == [place]
    local = by_tap(found.taps)[place].local
    assert local is not None
    assert local.max_abs == pytest.approx(0.25, rel=1e-6)
    touched = accumulated_errors(found.taps)
    names = list(by_tap(found.taps))
    assert touched[0] == place
    # All that follows has it; layers before have none of it.
    behind = names[names.index("model.layers.3/norm1") :]
    assert touched[-len(behind) :] == behind
    fault = first_fault(found.taps)
    assert fault is not None
    assert (fault.kind, fault.layer, fault.point, fault.where) == ("fault", 2, point, place)


def test_two_faults_are_told_apart(tmp_path: Path) -> None:
    faults = {
        Tap(3, "gate"): lambda value: value * np.float32(1.5),
        Tap(3, "act"): lambda value: value + np.float32(0.01),
    }
    found = held(tmp_path, replace(RIGHT, faults=faults))
    assert local_errors(found.taps) == ["model.layers.3/gate", "model.layers.3/act"]
    taps = by_tap(found.taps)
    # More than the second adds has travelled there from the first.
    local = taps["model.layers.3/act"].local
    assert local is not None
    assert local.max_abs == pytest.approx(0.01, rel=1e-4)
    assert taps["model.layers.3/act"].accumulated.max_abs > 0.05
    largest = largest_local(found.taps)
    assert largest is not None
    assert (largest.layer, largest.point) == (3, "gate")


@pytest.mark.parametrize(
    ("point", "shown"),
    [
        ("gate", ["resid2"]),
        ("attn", ["resid2"]),
        # Keys are compared, and not put in place: what attention makes of them is the layer's.
        ("k", ["keys", "resid2"]),
        ("resid2", ["resid2"]),
    ],
)
def test_at_level_layer_a_layer_is_forced_as_a_whole(
    tmp_path: Path, point: str, shown: list[str]
) -> None:
    found = held(tmp_path, plus(0.25, Tap(2, point)), points=LAYER_POINTS)
    assert local_errors(found.taps) == [f"model.layers.2/{one}" for one in shown]
    assert accumulated_errors(found.taps)[-2:] == ["norm", "logits"]


@pytest.mark.parametrize(
    "tap", [Tap(None, "embed"), Tap(None, "norm"), Tap(None, "logits")], ids=str
)
@pytest.mark.parametrize("points", [ALL_POINTS, LAYER_POINTS], ids=["tap", "layer"])
def test_a_fault_outside_the_layers(tmp_path: Path, tap: Tap, points: frozenset[str]) -> None:
    found = held(tmp_path, plus(0.25, tap), points=points)
    assert local_errors(found.taps) == [str(tap)]
    fault = first_fault(found.taps)
    assert fault is not None
    assert (fault.layer, fault.point) == (None, tap.point)


def test_the_order_in_which_taps_are_shown_does_not_matter(tmp_path: Path) -> None:
    for number, fault in enumerate((Tap(2, "q_rot"), Tap(2, "k_rot"), Tap(1, "k"))):
        script = plus(0.25, fault)
        one = held(tmp_path / f"{number}-one", script)
        other = held(tmp_path / f"{number}-other", replace(script, is_swapped=True))
        assert one == other


def test_what_a_target_swallowed_is_recomputed_from_its_own_values(tmp_path: Path) -> None:
    swallowed = hidden(4, "q", "q_rot", "act")
    script = replace(plus(0.25, Tap(1, "norm1")), hidden=swallowed)
    found = held(tmp_path, script, recompute=RIGHT)
    assert found.missing == ()
    assert {tap for tap in found.taps if tap.is_recomputed} == {
        tap for tap in found.taps if tap.point in ("q", "q_rot", "act")
    }
    # As if it had shown them.
    shown = held(tmp_path / "shown", plus(0.25, Tap(1, "norm1")))
    assert [replace(tap, is_recomputed=False) for tap in found.taps] == list(shown.taps)
    assert local_errors(found.taps) == ["model.layers.1/norm1"]


def test_a_fault_in_what_was_swallowed_shows_in_the_next_that_is_held(tmp_path: Path) -> None:
    """The program computes q right: that the kernel does not, shows behind it."""
    script = replace(plus(0.25, Tap(2, "q")), hidden=hidden(4, "q", "q_rot"))
    found = held(tmp_path, script, recompute=RIGHT)
    assert local_errors(found.taps) == ["model.layers.2/attn"]
    assert by_tap(found.taps)["model.layers.2/q"].accumulated.max_abs == 0


def test_a_fault_of_the_program_shows_in_what_was_swallowed(tmp_path: Path) -> None:
    """And not in what follows it, swallowed as well: that is computed from the reference's."""
    fault = plus(0.25, Tap(2, "gate"))
    script = replace(fault, hidden=hidden(4, "norm2", "gate", "up", "act"))
    found = held(tmp_path, script, recompute=fault)
    assert local_errors(found.taps)[0] == "model.layers.2/gate"
    assert "model.layers.2/act" not in local_errors(found.taps)
    gate = by_tap(found.taps)["model.layers.2/gate"]
    assert gate.is_recomputed
    assert gate.local is not None
    assert gate.local.max_abs == pytest.approx(0.25, rel=1e-6)


def test_what_is_swallowed_in_some_calls_is_recomputed_in_those(tmp_path: Path) -> None:
    class Decode(ScriptedRunner):
        """Shows no q of a single token, whose value is off."""

        def _tap(self, tap: Tap, value: np.ndarray) -> np.ndarray:
            if tap == Tap(1, "q") and len(value) == 1:
                return value
            return super()._tap(tap, value)

    found = hold_against(
        recorded(tmp_path),
        Decode(RIGHT),
        CALLS,
        level_points=ALL_POINTS,
        max_local=LIMIT,
        max_rel=1e-4,
        scratch=TapFolder(tmp_path / "scratch"),
        open_recompute=lambda: ScriptedRunner(
            replace(RIGHT, faults={Tap(1, "q"): lambda v: v + np.float32(0.5 * (len(v) == 1))})
        ),
    )
    q = by_tap(found.taps)["model.layers.1/q"]
    assert q.call in ("prompt0/step1", "prompt0/step2", "prompt1/prefill0", "prompt1/step1")
    assert (q.is_recomputed, q.status) == (True, "fail")
    assert found.missing == ()


def test_what_nobody_shows_is_missing(tmp_path: Path) -> None:
    script = replace(RIGHT, hidden=hidden(4, "q", "gate"))
    alone = held(tmp_path / "alone", script)
    assert alone.missing == tuple(taps_of(4, frozenset({"q", "gate"})))
    both = held(tmp_path / "both", script, recompute=replace(RIGHT, hidden=hidden(4, "q")))
    assert both.missing == tuple(taps_of(4, frozenset({"q"})))
    assert {tap.point for tap in both.taps if tap.is_recomputed} == {"gate"}
    # What the reference does not show is asked of no one.
    neither = held(tmp_path / "neither", RIGHT, reference=script)
    assert neither.missing == ()
    assert not {"q", "gate"} & {tap.point for tap in neither.taps}


def test_watching_that_changes_the_logits_is_a_finding(tmp_path: Path) -> None:
    found = held(tmp_path, replace(RIGHT, watched_noise=0.5))
    (finding,) = found.findings
    assert (finding.kind, finding.where) == ("observation", "prompt0/prefill0")
    assert finding.said == "reading taps changes the logits of prompt0/prefill0, by 0.5 at most"
    assert "believe none of its taps" in finding.hint


def test_watching_that_makes_logits_no_numbers(tmp_path: Path) -> None:
    (finding,) = held(tmp_path, replace(RIGHT, watched_noise=math.nan)).findings
    assert finding.said == "reading taps changes the logits of prompt0/prefill0, to nan"


def test_logits_that_are_no_numbers_either_way_did_not_change(tmp_path: Path) -> None:
    script = replace(RIGHT, faults={Tap(None, "logits"): lambda value: value * np.float32(np.nan)})
    found = held(tmp_path, script)
    assert found.findings == ()
    assert by_tap(found.taps)["logits"].status == "nan"


@pytest.mark.parametrize(
    ("value", "status"), [(np.nan, "nan"), (np.inf, "infinite"), (-np.inf, "infinite")]
)
def test_what_is_no_number_is_a_status_where_it_arises(
    tmp_path: Path, value: float, status: str
) -> None:
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[-1, 3] = value
        return rows

    with np.errstate(invalid="ignore"):
        found = held(tmp_path, replace(RIGHT, faults={Tap(2, "act"): spoil}))
    taps = by_tap(found.taps)
    assert {name: tap.status for name, tap in taps.items() if tap.status != "pass"} == {
        "model.layers.2/act": status
    }
    # It reached what follows in the model's own run: accumulated errors there are no numbers.
    assert math.isnan(taps["model.layers.2/down"].accumulated.max_abs)
    fault = first_fault(found.taps)
    assert fault is not None
    assert fault.said.startswith("model.layers.2/act is the first tap that cannot be compared, ")
    assert fault.said.endswith(f"in prompt0/prefill0: {status}")
    assert fault.hint == ""


def test_another_width_is_a_status(tmp_path: Path) -> None:
    def widen(rows: np.ndarray) -> np.ndarray:
        return np.repeat(rows, 2, axis=1)

    def narrow(rows: np.ndarray) -> np.ndarray:
        return rows[:, ::2]

    faults = {Tap(0, "gate"): widen, Tap(0, "up"): widen, Tap(0, "act"): narrow}
    found = held(tmp_path, replace(RIGHT, faults=faults))
    statuses = {
        name: tap.status for name, tap in by_tap(found.taps).items() if tap.status != "pass"
    }
    assert list(statuses.items())[:2] == [
        ("model.layers.0/gate", "shape"),
        ("model.layers.0/up", "shape"),
    ]


def test_rows_that_never_come_are_missed(tmp_path: Path) -> None:
    class Short(ScriptedRunner):
        """Shows all but the last row."""

        def _tap(self, tap: Tap, value: np.ndarray) -> np.ndarray:
            if tap != Tap(1, "o") or len(value) == 1:
                return super()._tap(tap, value)
            super()._tap(tap, value[:-1])
            return value

    found = hold_against(
        recorded(tmp_path),
        Short(RIGHT),
        CALLS,
        level_points=ALL_POINTS,
        max_local=LIMIT,
        max_rel=1e-4,
        scratch=TapFolder(tmp_path / "scratch"),
    )
    assert [name for name, tap in by_tap(found.taps).items() if tap.status != "pass"] == [
        "model.layers.1/o"
    ]
    assert by_tap(found.taps)["model.layers.1/o"].status == "shape"


def test_the_worst_call_is_kept_and_no_number_outranks_numbers(tmp_path: Path) -> None:
    def only(count: int, error: float) -> Script:
        faults = {Tap(1, "up"): lambda rows: rows + np.float32(error * (len(rows) == count))}
        return replace(RIGHT, faults=faults)

    def call(script: Script, name: str) -> tuple[str, str]:
        up = by_tap(held(tmp_path / name, script).taps)["model.layers.1/up"]
        return up.status, up.call

    assert call(only(2, 0.5), "second") == ("fail", "prompt0/prefill1")
    both = {Tap(1, "up"): lambda rows: rows + np.float32({4: 0.25, 2: 9.0, 1: 0.5}[len(rows)])}
    assert call(replace(RIGHT, faults=both), "largest") == ("fail", "prompt0/prefill1")
    some = {Tap(1, "up"): lambda rows: rows + np.float32({4: 99.0, 2: np.nan, 1: 9.0}[len(rows)])}
    assert call(replace(RIGHT, faults=some), "nan") == ("nan", "prompt0/prefill1")


@pytest.mark.parametrize("parts", [1, 3])
def test_a_call_in_parts_is_held_part_by_part(tmp_path: Path, parts: int) -> None:
    in_parts = replace(RIGHT, parts=parts)
    for name, script, reference in (
        ("candidate", in_parts, RIGHT),
        ("reference", RIGHT, in_parts),
        ("both", in_parts, in_parts),
    ):
        found = held(tmp_path / name, script, reference=reference)
        assert {tap.status for tap in found.taps} == {"pass"}
        assert max(tap.accumulated.max_rel for tap in found.taps) < LIMIT
    fault = replace(plus(0.25, Tap(2, "gate")), parts=parts)
    assert local_places(held(tmp_path / "fault", fault)) == ["model.layers.2/gate"]


def local_places(found: Observed) -> list[str]:
    """Taps whose local error is outside the limit."""
    return [name for name, tap in by_tap(found.taps).items() if tap.status != "pass"]


def test_what_a_call_in_parts_swallowed_is_recomputed_in_parts(tmp_path: Path) -> None:
    script = replace(plus(0.25, Tap(1, "norm1")), parts=3, hidden=hidden(4, "q", "act"))
    found = held(tmp_path, script, recompute=replace(RIGHT, parts=3))
    assert local_places(found) == ["model.layers.1/norm1"]
    # From its own norm1, which is off, and not from the right one.
    assert by_tap(found.taps)["model.layers.1/q"].accumulated.max_abs > 0.1


def test_a_target_that_cannot_replace_is_judged_by_accumulated_errors(
    tmp_path: Path,
) -> None:
    script = replace(plus(0.25, Tap(2, "gate")), refused=frozenset({"resid2"}))
    found = held(tmp_path / "judged", script, max_rel=1e-4)
    assert found.refusal == "model.layers.0/resid2 cannot be replaced"
    assert {tap.local for tap in found.taps} == {None}
    fault = first_fault(found.taps)
    assert fault is not None
    assert (fault.layer, fault.point) == (2, "gate")
    assert "its own error and what came before it together" in fault.said
    assert "max_rel" in fault.hint
    assert largest_local(found.taps) is None
    loose = held(tmp_path / "loose", script, max_rel=10.0)
    assert first_fault(loose.taps) is None


def test_saved_taps_have_accumulated_errors_alone(tmp_path: Path) -> None:
    saved = TapFolder(tmp_path / "saved")
    script = replace(plus(0.25, Tap(2, "gate")), hidden=hidden(4, "q"))
    record(ScriptedRunner(script), CALLS, saved, points=ALL_POINTS)
    taps = compare_saved(
        recorded(tmp_path), saved, CALLS, layers=4, level_points=ALL_POINTS, max_error=1e-4
    )
    expected = [tap for tap in taps_of(4) if tap.point != "q"]
    assert [Tap(tap.layer, tap.point) for tap in taps] == expected
    assert {tap.local for tap in taps} == {None}
    live = by_tap(held(tmp_path / "live", script).taps)
    assert {name: tap.accumulated for name, tap in by_tap(taps).items()} == {
        name: tap.accumulated for name, tap in live.items()
    }
    fault = first_fault(taps)
    assert fault is not None
    assert fault.where == "model.layers.2/gate"
    assert "max_rel" in fault.hint


def test_the_first_fault_says_how_far_and_what_is_usual(tmp_path: Path) -> None:
    small = dict.fromkeys(
        (Tap(layer, "gate") for layer in range(4)), lambda value: value * np.float32(1 + 1e-3)
    )
    faults = {**small, Tap(2, "gate"): lambda value: value * np.float32(1.5)}
    found = held(tmp_path, replace(RIGHT, faults=faults))
    lenient = [
        replace(tap, status="pass" if tap.local and tap.local.max_rel < 0.1 else "fail")
        for tap in found.taps
    ]
    fault = first_fault(lenient)
    assert fault is not None
    gate = by_tap(found.taps)["model.layers.2/gate"].local
    assert gate is not None
    assert fault.said == (
        "model.layers.2/gate is the first tap that is wrong by itself, computed from the "
        f"reference's values: in prompt0/prefill1 it is off by 0.5 of its largest value "
        f"({gate.max_abs:.2g}); in other layers gate is off by 0.001"
    )
    assert fault.hint == "compare: {max_local: 0.51} would pass"


def test_an_unusual_layer_among_what_is_no_number(tmp_path: Path) -> None:
    """The median of other layers counts numbers alone, and there may be none."""
    spoiled = {Tap(1, "up"): lambda value: value * np.float32(np.nan)}
    faults = {Tap(0, "up"): lambda value: value * np.float32(1.5), **spoiled}
    found = held(tmp_path, replace(Script(layers=2), faults=faults), reference=Script(layers=2))
    fault = first_fault(found.taps)
    assert fault is not None
    assert fault.where == "model.layers.0/up"
    assert "in other layers" not in fault.said
    largest = largest_local(found.taps)
    assert largest is not None
    assert (largest.layer, largest.point, largest.status) == (1, "up", "nan")


def test_rows_of_one_tap_are_in_memory_and_no_more(tmp_path: Path) -> None:
    """Seventy taps of 1 MB, of which a handful of copies may live at once."""
    script = Script(layers=4, width=1 << 16)
    size = 4 * script.width * 4
    calls = calls_of([((1, 2, 3, 4), ())], window=4)
    reference = TapFolder(tmp_path / "reference")
    record(ScriptedRunner(script), calls, reference, points=ALL_POINTS)
    # What the runner holds by itself: its cache, and the values of a layer.
    tracemalloc.start()
    ScriptedRunner(script).extend(calls[0].tokens)
    own = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    found = hold_against(
        reference,
        ScriptedRunner(script),
        calls,
        level_points=ALL_POINTS,
        max_local=LIMIT,
        max_rel=1e-4,
        scratch=TapFolder(tmp_path / "scratch"),
        open_recompute=lambda: ScriptedRunner(script),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.taps) == len(taps_of(4))
    # The runner's copy, the reference's rows, and float64 blocks of a few MB.
    assert peak - own < 4 * size + (12 << 20)
