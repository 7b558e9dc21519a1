"""What stands in the padding of a window changes nothing that is real, and is written nowhere."""

from collections.abc import Iterator

import numpy as np

from compiler.comparing.agreement import Outcome, State, blame_attention, compare_states
from compiler.comparing.reading import Reader
from compiler.contracts.runner import WindowedRunner

# Padding is tried at the context's end too where reading that far costs at most so many windows.
_EDGE_WINDOWS = 16


def why_no_padding(reader: Reader) -> str:
    """Why it does not apply; empty where it does."""
    if not isinstance(reader.runner, WindowedRunner):
        return "the runner has no windows"
    if not reader.takes_padding:
        return "prefill gives the last row's logits: windows are full"
    return "a window of one token has no padding" if reader.window < 2 else reader.too_short()


def padding_trials(reader: Reader, limit: float) -> Iterator[Outcome]:
    """Other tokens in the padding, after an empty cache, behind earlier tokens, at the end."""
    runner, window = reader.runner, reader.window
    assert isinstance(runner, WindowedRunner), "see why_no_padding"
    valid, count = max(1, window // 2), len(reader.tokens)
    cases = {(0, valid), (count - 1, 1), (max(0, count - valid), valid)}
    if runner.context <= _EDGE_WINDOWS * window:
        cases.add((max(0, runner.context - valid), valid))
    for past, real in sorted(cases):
        if past + real <= runner.context:
            yield from _pad_at(reader, runner, past, real, limit=limit)


def _pad_at(
    reader: Reader, runner: WindowedRunner, past: int, valid: int, *, limit: float
) -> Iterator[Outcome]:
    tokens = np.resize(np.array(reader.tokens), past + valid)
    # So that what is written by mistake is not there already.
    others = np.resize(np.array(reader.changed), min(past + reader.window, runner.context))
    reader.read(others.tolist())
    runner.rewind(0)
    if past:
        runner.extend(tokens[:past].tolist())
    kept = State(reader.rows(0, past))
    generator = np.random.default_rng([reader.seed, 2])
    fills = {
        "token 0": np.zeros(reader.window, np.int64),
        "random tokens": generator.integers(0, runner.vocabulary, reader.window),
        f"token {runner.vocabulary - 1}": np.full(reader.window, runner.vocabulary - 1),
    }
    first: State | None = None
    for name, fill in fills.items():
        about = f"with {name} as padding behind {past} + {valid} tokens"
        ids = fill.astype(np.int64)[None]
        ids[0, :valid] = tokens[past:]
        runner.rewind(past)
        later = reader.rows_beyond(past + valid)
        logits = runner.step("prefill", ids, past=past, valid=valid)
        runner.length = past + valid
        yield _compare_held(about, later, reader.rows_beyond(past + valid), limit)
        yield compare_states(about, kept, State(reader.rows(0, past)), limit)
        state = reader.state(logits)
        first = state if first is None else first
        yield blame_attention(compare_states(about, first, state, limit), "padding")
    if reader.has_decode:
        runner.rewind(past)
        later = reader.rows_beyond(past + 1)
        runner.extend([int(tokens[past])])
        about = f"with token {past} decoded"
        yield _compare_held(about, later, reader.rows_beyond(past + 1), limit)


def _compare_held(about: str, one: State, other: State, limit: float) -> Outcome:
    """Of rows that were there before and after."""
    if not one.rows or not other.rows:
        return Outcome()
    return compare_states(about, one, other, limit)
