"""Whether two calls of one runner agree: logits, and the rows of every layer's keys and values.

A value that is not finite agrees with nothing, itself included.
"""

from dataclasses import dataclass, replace

import numpy as np

# Keys and values of every layer; empty where there are none to hold against each other.
Rows = tuple[tuple[np.ndarray, np.ndarray], ...]

_POINTS = ("keys", "values")


@dataclass(frozen=True)
class State:
    """What a runner shows after a call.

    Attributes:
        rows: [positions, width] of each layer.
        logits: [vocabulary], after the last position; None: not held against each other.
        start: Position of the first row.
        length: Positions read.
    """

    rows: Rows
    logits: np.ndarray | None = None
    start: int = 0
    length: int = 0


@dataclass(frozen=True)
class Outcome:
    """Of holding two states against each other.

    Attributes:
        said: What is off, with the figures; empty where they agree.
        max_rel: Largest difference over the largest magnitude; of what is named, where one is off.
        token: Position that is off.
        layer: Layer that is off; None where only logits are.
        points: Which of its `keys` and `values`.
    """

    said: str = ""
    max_rel: float = 0.0
    token: int | None = None
    layer: int | None = None
    points: tuple[str, ...] = ()


def compare_states(about: str, one: State, other: State, limit: float) -> Outcome:
    """The lowest layer that is off, and its first row that is; logits where no layer is.

    Where both keys and values of that row are not finite, the layer before it is named.

    Args:
        about: What was done, to begin the message with.
        one: What magnitudes are taken of: of a layer's keys or values, all rows.
        other: Of the same positions.
        limit: Relative; 0 asks for equal bits.
    """
    worst = 0.0
    for layer, (pair, held) in enumerate(zip(one.rows, other.rows, strict=True)):
        if any(a.shape != b.shape for a, b in zip(pair, held, strict=True)):
            return _misshapen(f"{about}, the keys and values of layer {layer}", one.start, layer)
        errors = {
            point: _row_errors(*sides)
            for point, sides in zip(_POINTS, zip(pair, held, strict=True), strict=True)
        }
        # So written that a NaN is off.
        off = {point: error for point, error in errors.items() if not np.all(error <= limit)}
        if off:
            first = min(int(np.argmin(error <= limit)) for error in off.values())
            token = one.start + first
            apart = float(np.max([np.max(error) for error in off.values()]))
            where = f"the {' and '.join(off)} of layer {layer} at position {token}"
            said = f"{about}, {where} {_apart(apart, limit)}"
            if layer and len(off) == 2 and all(np.isnan(error[first]) for error in off.values()):
                said, layer = f"{said}: what layer {layer - 1} leaves is not", layer - 1
            return Outcome(said, apart, token, layer, tuple(off))
        worst = max(worst, *(float(np.max(error, initial=0.0)) for error in errors.values()))
    if one.logits is None or other.logits is None:
        return Outcome(max_rel=worst)
    token = one.length - 1
    where = f"{about}, the logits after position {token}"
    if one.logits.shape != other.logits.shape:
        return _misshapen(where, token, None)
    apart = float(_row_errors(one.logits[None], other.logits[None])[0])
    if apart <= limit:
        return Outcome(max_rel=max(worst, apart))
    return Outcome(f"{where} {_apart(apart, limit)}", apart, token)


def unchanged(about: str, one: State, other: State) -> Outcome | None:
    """The lowest layer whose keys or values are equal though they must differ, if there is one."""
    for layer, (pair, held) in enumerate(zip(one.rows, other.rows, strict=True)):
        for point, before, after in zip(_POINTS, pair, held, strict=True):
            if np.array_equal(before, after):
                where = f"the {point} of layer {layer} at position {one.start}"
                return Outcome(f"{about}, {where} did not change", 0.0, one.start, layer, (point,))
    return None


def blame_attention(outcome: Outcome, seen: str) -> Outcome:
    """Where both keys and values are off, the layer's input is, which the attention before left.

    For trials whose sides differ in other positions alone: attention carries from one to another.
    What is not finite may have arisen anywhere in the layer before.

    Args:
        outcome: Of such a trial.
        seen: What it must not have seen, for the message.
    """
    if not outcome.layer or len(outcome.points) < 2 or np.isnan(outcome.max_rel):
        return outcome
    layer = outcome.layer - 1
    said = f"{outcome.said}: the attention of layer {layer} sees {seen}"
    return replace(outcome, said=said, layer=layer)


def _misshapen(where: str, token: int, layer: int | None) -> Outcome:
    return Outcome(f"{where} have other shapes", float("nan"), token, layer)


def _row_errors(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[rows]: largest difference over the largest magnitude of all rows; NaN if not finite."""
    finite = np.all(np.isfinite(one) & np.isfinite(other), axis=1, keepdims=True)
    wide = np.where(finite, one, 0).astype(np.float64)
    apart = np.abs(wide - np.where(finite, other, 0)).max(axis=1, initial=0.0)
    scale = float(np.abs(wide).max(initial=0.0))
    errors = apart / scale if scale else np.where(apart > 0, np.inf, 0.0)
    return np.where(finite[:, 0], errors, np.nan)


def _apart(apart: float, limit: float) -> str:
    if np.isnan(apart):
        return "are not finite"
    wanted = f"the limit is {limit:g}" if limit else "they must be equal"
    return f"are off by {apart:.2g} of the largest magnitude; {wanted}"
