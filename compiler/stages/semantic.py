"""Properties that hold of every causal language model, tried on a runner alone: no reference.

Where both sides of a trial make the same calls on the same tokens, their bits must agree
(`causality`, `padding`, `reset`); where other kernels sum in other orders, a relative limit holds
(`prefill-decode`, `window-split`). A value that is not finite agrees with nothing.

Attention alone carries anything from one position to another, and what layer L's attention took in
shows one layer on: the input of layer L + 1 differs, and so both its keys and its values. Keys
without values, or values without keys, are the layer's own doing (its rotation, its write). Past
the last layer there are only the logits of a call's last real token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from compiler.comparing.agreement import (
    Outcome,
    State,
    blame_attention,
    compare_states,
    unchanged,
)
from compiler.comparing.padding import padding_trials, why_no_padding
from compiler.comparing.prompts import prompt_trials, why_one_prompt
from compiler.comparing.reading import Reader, draw_reader
from compiler.contracts.comparison import SemanticCheck
from compiler.contracts.errors import CompilerError
from compiler.contracts.runner import Runner, WindowedRunner

# Lengths of calls that line up with no window.
_ODD_SIZES = (3, 5, 1, 7)


@dataclass(frozen=True)
class _Property:
    """One check: why it does not apply, or nothing, and its trials under a limit."""

    name: str
    is_exact: bool
    why_not: Callable[[Reader], str]
    trials: Callable[[Reader, float], Iterator[Outcome]]


def _changes(reader: Reader) -> list[tuple[int, int]]:
    """Positions to change, and where the call begins that reads the row before them as well.

    From there windows are full or, for the last position, padded: a mask may be wrong in either.
    """
    count, window = len(reader.tokens), reader.window
    full = max(0, count - window)
    padded = count - 1 - window // 2 if reader.takes_padding else full
    cases = [(window - 1, 0), (window, full), (count - 1, padded)]
    generator = np.random.default_rng([reader.seed, 1])
    for position in generator.integers(1, count, 2).tolist():
        begin = int(generator.integers(max(0, position - max(window - 1, 1)), position))
        cases.append((position, begin if reader.takes_padding else min(begin, full)))
    return sorted(
        {
            (position, max(0, min(begin, position - 1)) // reader.unit * reader.unit)
            for position, begin in cases
            if 1 <= position < count
        }
    )


def _look_ahead(reader: Reader, limit: float) -> Iterator[Outcome]:
    """Change a token and all after it: no row before changes, nor the logits of a shorter prompt.

    Rows that share the call with the changed token show every layer but the last, whose attention
    no later row carries. For that one the prompt that ends before the token is read again over what
    the longer one left in the cache, where a row that sees one slot too many finds the token.
    """
    for position, begin in _changes(reader):
        changed = reader.tokens[:position] + reader.changed[position:]
        one = _around(reader, reader.tokens, position, begin)
        other = _around(reader, changed, position, begin)
        about = f"with other tokens from {position} on"
        stuck = unchanged(about, one[0], other[0])
        if stuck is not None:
            yield stuck
        for before, after in zip(one[1:], other[1:], strict=True):
            outcome = compare_states(about, before, after, limit)
            yield _blame_last_attention(reader, outcome, "a later token")


def _around(reader: Reader, tokens: tuple[int, ...], position: int, begin: int) -> list[State]:
    """The row at `position`; the rows before it; the logits of shorter prompts read after it."""
    reader.read(tokens[:begin], tokens[begin:])
    states = [State(reader.rows(position, position + 1), start=position)]
    states += [State(reader.rows(0, position))] if not reader.hidden else []
    for start in sorted({begin, position - 1}):
        if start % reader.unit == 0 and position % reader.unit == 0:
            reader.runner.rewind(start)
            states.append(reader.go_on(tokens[start:position]))
    return states


def _blame_last_attention(reader: Reader, outcome: Outcome, seen: str) -> Outcome:
    """Likewise; of what shows in the logits alone, that of the last layer is."""
    if not outcome.said or outcome.points or reader.hidden or np.isnan(outcome.max_rel):
        return blame_attention(outcome, seen)
    layer = reader.runner.layers - 1
    said = f"{outcome.said}: the attention of layer {layer}, the last, sees {seen}"
    return replace(outcome, said=said, layer=layer)


def _no_decode(reader: Reader) -> str:
    if not reader.has_decode:
        return "there is no decode graph"
    if not _decoded(reader):
        return reader.too_short() or f"each of {len(reader.tokens)} tokens is decoded in any case"
    return ""


def _decoded(reader: Reader) -> list[int]:
    """Positions that a longer prefill reads by the prefill graph."""
    count, window = len(reader.tokens), reader.window
    wanted = {window // 2, window - 1, count - 1}
    if not isinstance(reader.runner, WindowedRunner):
        return sorted(p for p in wanted if 1 <= p < count)
    prefilled = (
        # A lone token of a window is decoded; without padding all tokens of an unfilled one are.
        {p for p in wanted if p % window}
        if reader.takes_padding
        else set(range(window - 1, count, window))
    )
    return sorted(p for p in prefilled if 1 <= p < count)


def _decode_for_prefill(reader: Reader, limit: float) -> Iterator[Outcome]:
    """The last token decoded instead of prefilled."""
    for position in _decoded(reader):
        tokens = reader.tokens[: position + 1]
        whole = reader.read(tokens)
        parts = reader.read(tokens[:-1], tokens[-1:])
        about = f"with {position} tokens read and then one"
        yield compare_states(about, whole, parts, limit)


def _splits(reader: Reader) -> dict[str, list[int]]:
    """Ways to read the prompt, by the lengths of their calls."""
    count, window = len(reader.tokens), reader.window
    odd = [_ODD_SIZES[index % len(_ODD_SIZES)] for index in range(count)]
    ways = {
        "in windows": [window] * count,
        "one and then the rest": [1, count - 1],
        "in odd pieces": odd,
        "token by token": [1] * count,
    }
    cut = {name: np.minimum(np.cumsum(sizes), count).tolist() for name, sizes in ways.items()}
    return {
        name: sorted(set(ends))
        for name, ends in cut.items()
        if len(set(ends)) > 1 and all(end % reader.unit == 0 for end in ends)
    }


def _no_split(reader: Reader) -> str:
    if not _splits(reader) and reader.unit > 1:
        return f"the context holds one window of {reader.window}, which must be full"
    return reader.too_short()


def _split(reader: Reader, limit: float) -> Iterator[Outcome]:
    """One prompt in one call and in several."""
    whole = reader.read(reader.tokens)
    for name, ends in _splits(reader).items():
        starts = [0, *ends[:-1]]
        pieces = [reader.tokens[a:b] for a, b in zip(starts, ends, strict=True)]
        about = f"with {len(reader.tokens)} tokens read {name}"
        yield compare_states(about, whole, reader.read(*pieces), limit)


def _rewind(reader: Reader, limit: float) -> Iterator[Outcome]:
    """Prompts read again, over what others left behind."""
    tokens, others = reader.tokens, reader.changed
    half = max(reader.unit, len(tokens) // 2 // reader.unit * reader.unit)
    ways = [[tokens[:half]], [tokens]]
    if half >= 2 and reader.unit == 1:
        ways.append([tokens[: half - 1], tokens[half - 1 : half]])
    for pieces in ways:
        reader.read(tokens)
        fresh = reader.read(*pieces)
        reader.read(others)
        about = f"with {fresh.length} tokens read again after {len(others)} others"
        outcome = compare_states(about, fresh, reader.read(*pieces), limit)
        yield blame_attention(outcome, "what they left")
    if half < len(tokens):
        fresh = reader.read(tokens[:half], tokens[half:])
        reader.runner.rewind(half)
        reader.go_on(others[half:])
        reader.runner.rewind(half)
        about = f"with tokens {half} to {len(tokens)} read again after a rewind to {half}"
        outcome = compare_states(about, fresh, reader.go_on(tokens[half:]), limit)
        yield blame_attention(outcome, "what was cut off")


_PROPERTIES = (
    _Property("causality", True, Reader.too_short, _look_ahead),
    _Property("prefill-decode", False, _no_decode, _decode_for_prefill),
    _Property("window-split", False, _no_split, _split),
    _Property("padding", True, why_no_padding, padding_trials),
    _Property("reset", True, Reader.too_short, _rewind),
    _Property("batch-rows", True, why_one_prompt, prompt_trials),
)


def _check(tried: _Property, reader: Reader, limit: float) -> SemanticCheck:
    note = f"; of logits alone: {reader.hidden}" if reader.hidden else ""
    passed = SemanticCheck(tried.name, "pass", f"holds{note}", limit=limit)
    why_not = tried.why_not(reader)
    if why_not:
        return replace(passed, status="not-applicable", said=why_not)
    try:
        outcomes = _until_one_fails(tried.trials(reader, limit))
    except CompilerError as error:
        return replace(passed, status="fail", said=f"the runner refused a call: {error.message}")
    if not outcomes:
        return replace(passed, status="not-applicable", said=f"nothing to compare{note}")
    last = outcomes[-1]
    # Not Python's `max`, which may drop a NaN.
    passed = replace(passed, max_rel=float(np.max([outcome.max_rel for outcome in outcomes])))
    if not last.said:
        return passed
    return replace(
        passed, status="fail", said=f"{last.said}{note}", token=last.token, layer=last.layer
    )


def _until_one_fails(outcomes: Iterator[Outcome]) -> list[Outcome]:
    seen: list[Outcome] = []
    for outcome in outcomes:
        seen.append(outcome)
        if outcome.said:
            break
    return seen


def check_semantics(
    runner: Runner, *, window: int, seed: int, limit: float
) -> tuple[SemanticCheck, ...]:
    """Try every property on `runner`, which is left rewound to 0.

    Args:
        runner: Any; what it had read is forgotten. Its vocabulary has two tokens at least.
        window: Tokens of a call whose edges are tried; a `WindowedRunner`'s own is taken instead.
        seed: Of the prompt, and of what is changed in it.
        limit: Largest difference over the largest magnitude where other kernels may compute the
            same value; the other checks ask for equal bits.

    Returns:
        One check of each name, in the order of `SemanticCheck.name`.
    """
    reader = draw_reader(runner, window=window, seed=seed)
    checks = tuple(_check(tried, reader, 0.0 if tried.is_exact else limit) for tried in _PROPERTIES)
    runner.rewind(0)
    return checks
