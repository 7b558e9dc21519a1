"""What a runner does besides computing: properties without a reference, refusals, taps."""

from collections.abc import Sequence

import numpy as np

from compiler.conformance.models import CONTEXT, WINDOW
from compiler.conformance.numbers import drawn_prompts
from compiler.conformance.results import Outcome, failed, not_applicable, not_shown, passed
from compiler.conformance.subject import Subject
from compiler.conformance.tap_order import misplaced
from compiler.contracts.comparison import SemanticCheck
from compiler.contracts.errors import RunError, TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Observer, Tap, taps_of
from compiler.stages.semantic import check_semantics

# Name -> what holds.
SEMANTIC = {
    "causality": "no row depends on a later token",
    "prefill-decode": "a token decoded is as a token prefilled",
    "window-split": "one call is as several",
    "padding": "padding changes nothing",
    "reset": "a rewind forgets",
}


class Semantics:
    """The checks without a reference, run once for all of their names."""

    def __init__(self) -> None:
        self._found: dict[str, SemanticCheck] = {}

    def check(self, subject: Subject, name: str) -> Outcome:
        """One of them."""
        if not self._found:
            self._found = _semantics(subject)
        one = self._found[name]
        if one.status == "not-applicable":
            return not_applicable(one.said)
        if one.status == "pass":
            return passed(f"{SEMANTIC[name]}: {one.said}")
        where = "" if one.layer is None else f", layer {one.layer}"
        return failed(
            f"not so: {SEMANTIC[name]}",
            expected=f"a difference of at most {one.limit:g}" if one.limit else "equal bits",
            came=one.said,
            look_at=f"--keep DIR, then python -m compiler compare BUNDLE --semantic{where}",
        )


def _semantics(subject: Subject) -> dict[str, SemanticCheck]:
    runner = subject.open()
    try:
        limit = subject.limits(subject.dtype).max_rel
        checks = check_semantics(runner, window=WINDOW, seed=subject.seed, limit=limit)
    finally:
        runner.close()
    return {check.name: check for check in checks}


def check_errors(subject: Subject) -> Outcome:
    """What cannot be read is refused with a RunError, and the runner goes on as before."""
    runner = subject.open()
    try:
        (prompt,) = drawn_prompts((9,), runner.vocabulary, seed=subject.seed)
        wanted = runner.extend(prompt).copy()
        after = runner.extend(prompt[:1]).copy()
        room = runner.context
        calls: list[tuple[str, Sequence[int], Sequence[int]]] = [
            ("no tokens", prompt, ()),
            (f"token {runner.vocabulary} of {runner.vocabulary}", prompt, (runner.vocabulary,)),
            ("token -1", prompt, (3, -1)),
            ("more than the context holds", prompt, (1,) * (room - len(prompt) + 1)),
            ("one more than a full context", (1,) * room, (1,)),
        ]
        for about, before, refused in calls:
            runner.rewind(0)
            runner.extend(before)
            outcome = _refused(runner, about, refused)
            if outcome is not None:
                return outcome
            runner.rewind(0)
            rows = [runner.extend(prompt), runner.extend(prompt[:1])]
            if not all(map(np.array_equal, rows, (wanted, after))):
                return failed(
                    f"after it refused {about} the runner gives other logits",
                    expected="those that it gave before, to the bit",
                    came=f"off by up to {np.abs(rows[0] - wanted).max():.3g}",
                    look_at="Runner.extend: check before anything is written (check_tokens)",
                )
    finally:
        runner.close()
    return passed(f"{len(calls)} kinds of calls refused, and the runner goes on")


def _refused(runner: Runner, about: str, tokens: Sequence[int]) -> Outcome | None:
    """None where the call is refused as it must be, and nothing was read."""
    length = runner.length
    try:
        runner.extend(tokens)
    except RunError:
        came = f"the runner's length went from {length} to {runner.length}"
        if runner.length == length:
            return None
    except Exception as error:  # a stranger's code: said in the check
        came = f"{type(error).__name__}: {error}"
    else:
        came = "logits"
    return failed(
        f"{about} was not refused as it must be",
        expected="a RunError, and nothing read",
        came=came,
        look_at="Runner.extend: call check_tokens first",
    )


class _Watcher(Observer):
    """Keeps what it is shown."""

    def __init__(self, points: frozenset[str] | None = None) -> None:
        if points is not None:
            self.points = points
        self.seen: list[tuple[Tap, np.ndarray]] = []

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        self.seen.append((tap, np.array(rows)))
        return None


def check_taps(subject: Subject) -> Outcome:
    """Taps have the declared names, in order, and showing them changes no bit."""
    runner = subject.open()
    try:
        (prompt,) = drawn_prompts((WINDOW - 7,), runner.vocabulary, seed=subject.seed)
        plain = _read(runner, prompt)
        watcher = _Watcher()
        try:
            runner.observe(watcher)
            watched = _read(runner, prompt)
        except TargetError as error:
            return not_shown(error.message)
        if not watcher.seen:
            return not_shown("it shows no tap")
        few = _Watcher(frozenset({"logits", "q"}))
        runner.observe(few)
        _read(runner, prompt)
        runner.observe(None)
        after = _read(runner, prompt)
    finally:
        runner.close()
    for about, rows in (("while it is watched", watched), ("after it was watched", after)):
        if not all(map(np.array_equal, plain, rows)):
            apart = max(np.abs(a - b).max() for a, b in zip(plain, rows, strict=True))
            return failed(
                f"its logits are others {about}",
                expected="the same bits",
                came=f"off by up to {apart:.3g}",
                look_at="Runner.observe: no rebuild, no other kernels",
            )
    return _well_shown(runner, watcher, few, calls=len(plain))


def _read(runner: Runner, prompt: Sequence[int]) -> list[np.ndarray]:
    """The logits of a padded window and of two decoded tokens."""
    runner.rewind(0)
    return [runner.extend(part).copy() for part in (prompt, prompt[:1], prompt[1:2])]


def _well_shown(runner: Runner, watcher: _Watcher, few: _Watcher, *, calls: int) -> Outcome:
    known = taps_of(runner.layers)
    unknown = sorted({str(tap) for tap, _ in watcher.seen if tap not in known})
    look_at = "compiler.contracts.taps: names and order"
    if unknown:
        return failed(
            "it shows taps under other names",
            expected=f"names of a model of {runner.layers} layers, as taps_of gives them",
            came=", ".join(unknown),
            look_at=look_at,
        )
    misshapen = [
        f"{tap}: {rows.dtype} {list(rows.shape)}"
        for tap, rows in watcher.seen
        if rows.dtype != np.float32 or rows.ndim != 2 or not 0 < len(rows) <= CONTEXT
    ]
    if misshapen:
        return failed(
            "it shows taps in other shapes",
            expected="float32 [tokens, width]",
            came=misshapen[0],
            look_at=look_at,
        )
    strange = sorted({tap.point for tap, _ in few.seen} - few.points)
    if strange:
        return failed(
            "it shows points that nobody asked for",
            expected="q and logits alone",
            came=", ".join(strange),
            look_at="Observer.points",
        )
    shown = list(dict.fromkeys(tap for tap, _ in watcher.seen))
    swapped = misplaced(shown, runner.layers)
    if swapped is not None:
        return failed(
            "it shows a tap before what it is computed from",
            expected=f"{swapped[1]}, then {swapped[0]}",
            came=f"{swapped[0]}, then {swapped[1]}",
            look_at=look_at,
        )
    return passed(f"{len(shown)} of {len(known)} taps in {calls} calls, no bit changed")
