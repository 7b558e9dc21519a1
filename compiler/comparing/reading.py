"""One runner read in pieces from a prompt, and what it shows after each: logits and its cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler.comparing.agreement import Rows, State
from compiler.contracts.errors import CompilerError, TargetError
from compiler.contracts.runner import Runner, WindowedRunner


@dataclass(frozen=True)
class Reader:
    """A runner, and how it may be read.

    Attributes:
        window: Tokens of a prefill call.
        seed: Of all that is drawn.
        tokens: A prompt of a window and a half where the context allows it.
        changed: As many tokens, each another than in `tokens`.
        hidden: Why there is nothing but logits; empty where the cache is shown.
        has_decode: Whether one token is read by another graph than several.
        takes_padding: Whether a call may leave a window unfilled.
    """

    runner: Runner
    window: int
    seed: int
    tokens: tuple[int, ...]
    changed: tuple[int, ...]
    hidden: str = ""
    has_decode: bool = True
    takes_padding: bool = True

    @property
    def unit(self) -> int:
        """What the length of every call must be a multiple of."""
        return 1 if self.takes_padding or self.has_decode else self.window

    def too_short(self) -> str:
        """Why nothing can be tried; empty where the prompt has two tokens."""
        count = len(self.tokens)
        return f"the context holds {count} token, two are needed" if count < 2 else ""

    def read(self, *pieces: Sequence[int]) -> State:
        """Start over and read each piece in a call."""
        self.runner.rewind(0)
        return self.go_on(*pieces)

    def go_on(self, *pieces: Sequence[int]) -> State:
        """Read each piece that is not empty in a call; the state after the last."""
        logits = [self.runner.extend(piece) for piece in pieces if piece]
        return self.state(logits[-1])

    def state(self, logits: np.ndarray) -> State:
        """The logits, and every row up to the runner's length."""
        length = self.runner.length
        return State(self.rows(0, length), logits.copy(), length=length)

    def rows(self, start: int, stop: int) -> Rows:
        """Of all layers; nothing where the runner hides them or there are no positions."""
        if self.hidden or start >= stop:
            return ()
        layers = range(self.runner.layers)
        return tuple(self.runner.cache_rows(layer, start, stop) for layer in layers)

    def rows_beyond(self, start: int) -> State:
        """Rows that hold no token; nothing where the runner has no others than it has read."""
        runner = self.runner
        length = runner.length
        # A runner may refuse to show rows past its length.
        runner.length = runner.context
        try:
            return State(self.rows(start, runner.context), start=start)
        except TargetError:
            return State((), start=start)
        finally:
            runner.length = length


def draw_reader(runner: Runner, *, window: int, seed: int) -> Reader:
    """A prompt for `runner`, whose own window is taken where it has one."""
    has_decode, takes_padding = True, True
    if isinstance(runner, WindowedRunner):
        window = runner.window
        has_decode, takes_padding = runner.has_decode, runner.takes_padding
    count = min(runner.context, window + window // 2 + 1)
    if not (has_decode or takes_padding):
        count = min(2, runner.context // window) * window
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, runner.vocabulary, count)
    changed = (tokens + generator.integers(1, runner.vocabulary, count)) % runner.vocabulary
    reader = Reader(
        runner,
        window,
        seed,
        tuple(tokens.tolist()),
        tuple(changed.tolist()),
        has_decode=has_decode,
        takes_padding=takes_padding,
    )
    return replace(reader, hidden=_why_hidden(reader))


def _why_hidden(reader: Reader) -> str:
    if not reader.runner.layers:
        return f"{type(reader.runner).__name__} names no layers"
    try:
        reader.read(reader.tokens[: reader.unit])
    except CompilerError as error:
        return error.message
    return ""
