"""What runs an opened model: tokens in, the next token's logits out, one KV cache behind it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from compiler.contracts.errors import RunError, TargetError
from compiler.contracts.profile import CallProfile
from compiler.contracts.program import Phase
from compiler.contracts.taps import Observer


class Runner(ABC):
    """One opened model with a KV cache; tokens in, the next token's logits out.

    Attributes:
        vocabulary: Number of logits.
        context: Positions that the cache holds.
        length: Positions filled so far.
        layers: Decoder layers.
        slots: Prompts that are held at once, each in a cache of its own.
        slot: The one that everything speaks of but `extend_each`.
    """

    vocabulary: int
    context: int
    length: int = 0
    layers: int = 0
    slots: int = 1
    slot: int = 0

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append one or more tokens; the logits after the last of them, float32 [vocabulary].

        Raises:
            RunError: A token is outside the vocabulary, there are none, or the context is full.
        """

    def read_rows(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Append tokens; the logits after each of them, float32 [vocabulary], one after the other.

        The runner runs as the rows are taken: take them all before it is used again or closed. Rows
        share their memory with others: whoever keeps a row keeps what was computed with it.

        Raises:
            RunError: As `extend`, when the first row is taken.
        """
        self.check_tokens(tokens)
        for token in tokens:
            yield self.extend([token])

    def use_slot(self, slot: int) -> None:
        """Speak of another prompt from here on; each keeps its own length."""
        assert 0 <= slot < self.slots, f"slot {slot} of {self.slots}"
        assert self.slots == 1, f"{type(self).__name__} has slots, and no use_slot"

    def extend_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Append one token to each of several prompts; what each gets as from `extend`.

        Args:
            tokens: By slot; prompts that are not named stay as they are.

        Raises:
            RunError: As `extend`, before any prompt has changed.
        """
        found: dict[int, np.ndarray] = {}
        for slot, token in tokens.items():
            self.use_slot(slot)
            found[slot] = self.extend([token])
        return found

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on; 0 starts over."""
        assert 0 <= length <= self.length, f"rewind to {length} of {self.length}"
        self.length = length

    def observe(self, observer: Observer | None) -> None:
        """Show `observer` the taps of every call from here on; None ends it.

        Taps come in the order of computation, those that the runner holds, and no others. Watching
        must not change what is computed: no rebuild, no other kernels.

        Raises:
            TargetError: This runner shows nothing but logits.
        """
        del observer
        raise TargetError(
            f"{type(self).__name__} shows no taps", hint="compare with --level end-to-end"
        )

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of positions [start, stop) of a layer, rotated, as attention reads them.

        Returns:
            Two float32 arrays [stop - start, kv_heads * head_dim], copies.

        Raises:
            TargetError: This runner shows nothing but logits, or its cache ends before `stop`.
        """
        del layer, start, stop
        raise TargetError(f"{type(self).__name__} does not show its cache")

    def profile(self, tokens: Sequence[int]) -> CallProfile:
        """Append tokens as `extend` does, and say where the time went; no logits come back.

        What is computed is the same: no rebuild, no other kernels. The first call may be longer.

        Raises:
            TargetError: This runner cannot time its kernels.
            RunError: As `extend`.
        """
        del tokens
        raise TargetError(
            f"{type(self).__name__} does not time its kernels",
            hint="measure without --profile",
            code="no-profile",
        )

    def close(self) -> None:  # noqa: B027 - nothing to release is a proper default
        """Release what the runner holds."""

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse an empty call, ids outside the vocabulary, and what the context cannot hold."""
        if not tokens:
            raise RunError("no tokens were given", hint="give at least one token")
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise RunError(f"token id {token} is outside the vocabulary of {self.vocabulary}")
        if self.length + len(tokens) > self.context:
            raise RunError(
                f"{self.length + len(tokens)} tokens do not fit the context of {self.context}",
                hint="shorten the prompt, or build with a longer frontend.shape.input_ids[1]",
                code="context-full",
            )


class WindowedRunner(Runner):
    """A runner over a bundle's two graphs: prompts in windows of P, single tokens by decode.

    A target implements `step`; windows, padding and the context check are done here, once.

    Attributes:
        window: Tokens of a prefill call, P.
        has_decode: Whether there is a decode graph.
        takes_padding: Whether the prefill graph gives the logits of the last real token; where it
            gives the last row's, what does not fill a window is read token by token.
    """

    window: int
    has_decode: bool = True
    takes_padding: bool = True
    has_every_row: bool = False
    _lengths: Mapping[int, int] = MappingProxyType({})

    @abstractmethod
    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """Run one graph.

        Args:
            phase: Which graph; never decode where there are several slots.
            tokens: int64 [1, P] right-padded with zeros (prefill) or [1, 1] (decode).
            past: Cache positions that hold earlier tokens; past + valid <= context.
            valid: How many of `tokens` are real; only their rows enter the cache.

        Returns:
            float32 [vocabulary], the logits after token `valid - 1`.
        """

    def step_rows(self, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """Run the prefill graph where it gives every row; float32 [valid, vocabulary].

        A target that sets `has_every_row` implements it; the arguments are those of `step`.
        """
        raise NotImplementedError(f"{type(self).__name__} has_every_row, and no step_rows")

    def step_slots(self, tokens: np.ndarray, *, past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Run the decode graph of several prompts; a target that sets `slots` implements it.

        Args:
            tokens: int64 [1, slots].
            past: int64 [slots]: positions that each prompt's cache holds.
            valid: int64 [slots]: 1, or 0 for a prompt that takes no part: its cache stays as it is.

        Returns:
            float32 [slots, vocabulary]; rows of prompts that take no part mean nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} has slots, and no step_slots")

    def use_slot(self, slot: int) -> None:
        """The other prompts' lengths are kept."""
        assert 0 <= slot < self.slots, f"slot {slot} of {self.slots}"
        self._lengths = {**self._lengths, self.slot: self.length}
        self.slot, self.length = slot, self._lengths.get(slot, 0)

    def extend_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """One call of the decode graph, where it takes several prompts."""
        if self.slots == 1:
            return super().extend_each(tokens)
        chosen = self.slot
        try:
            for slot, token in tokens.items():
                self.use_slot(slot)
                self.check_tokens([token])
            rows = self._step_slots(tokens)
            for slot in tokens:
                self.use_slot(slot)
                self.length += 1
        finally:
            self.use_slot(chosen)
        return rows

    def _step_slots(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Arrays for `step_slots`; what takes no part has no past either."""
        lengths = {**self._lengths, self.slot: self.length}
        ids = np.zeros((1, self.slots), np.int64)
        past, valid = np.zeros(self.slots, np.int64), np.zeros(self.slots, np.int64)
        for slot, token in tokens.items():
            ids[0, slot], past[slot], valid[slot] = token, lengths.get(slot, 0), 1
        logits = self.step_slots(ids, past=past, valid=valid)
        return {slot: logits[slot] for slot in tokens}

    def read_rows(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """A window at a time where the prefill graph gives every row."""
        if not self.has_every_row:
            yield from super().read_rows(tokens)
            return
        self.check_tokens(tokens)
        for start in range(0, len(tokens), self.window):
            chunk = tokens[start : start + self.window]
            ids = _padded(chunk, self.window)
            rows = self.step_rows(ids, past=self.length, valid=len(chunk))
            self.length += len(chunk)
            yield from rows

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Windows of P for several tokens, the decode graph for one."""
        self.check_tokens(tokens)
        if not self.takes_padding and not self.has_decode and len(tokens) % self.window:
            raise RunError(
                f"{len(tokens)} tokens do not fill windows of {self.window}, and the bundle gives "
                "the logits of a window's last row",
                hint="build with insert-strided-slice: {position: last_valid}, or with a context",
            )
        logits = np.empty(0, np.float32)
        start = 0
        while start < len(tokens):
            chunk = tokens[start : start + self.window]
            if len(chunk) < self.window and not self.takes_padding:
                chunk = chunk[:1]
            phase: Phase = "decode" if len(chunk) == 1 and self.has_decode else "prefill"
            if phase == "decode" and self.slots > 1:
                logits = self._step_slots({self.slot: chunk[0]})[self.slot]
            else:
                ids = _padded(chunk, 1 if phase == "decode" else self.window)
                logits = self.step(phase, ids, past=self.length, valid=len(chunk))
            self.length += len(chunk)
            start += len(chunk)
        return logits


def _padded(tokens: Sequence[int], width: int) -> np.ndarray:
    """int64 [1, width], zeros on the right."""
    ids = np.zeros((1, width), np.int64)
    ids[0, : len(tokens)] = tokens
    return ids
