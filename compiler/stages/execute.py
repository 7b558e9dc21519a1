"""bundle -> Session: prompts in, tokens out, each on a KV cache.

A `Session` drives any `Runner`. Text is streamed in whole characters; a conversation keeps in the
cache what its turns share, and reads only what is new. Several prompts at once take their steps
together, where the runner has a slot for each.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import takewhile
from types import TracebackType

import numpy as np

from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner
from compiler.generation import FinishReason, GenerateOptions, Generation, Growth, Token
from compiler.text import Message, Text

__all__ = ["FinishReason", "GenerateOptions", "Generation", "Session", "Token"]


class Session:
    """An opened model. A context manager; `close` releases the runner.

    Attributes:
        runner: The model.
        text: Its tokenizer.
        last: The last generation, if it ran to its end; None while one runs.
    """

    def __init__(self, runner: Runner, text: Text) -> None:
        self.runner = runner
        self.text = text
        self.last: Generation | None = None
        self._cached: list[int] = []  # the tokens that the cache is known to hold
        self._turn = 0

    def generate(self, prompt: str | Sequence[int], options: GenerateOptions) -> Iterator[Token]:
        """Stream the continuation of a prompt from an empty cache; then `last` holds the result.

        Args:
            prompt: Text, or token ids.
            options: How to generate.

        Raises:
            RunError: At once: the prompt is empty, over the context, outside the vocabulary, or
                text where there is no tokenizer. While streaming: the logits are not numbers.
        """
        tokens = self.text.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._start(tokens, options, reuse=0)

    def generate_each(
        self, prompts: Sequence[str | Sequence[int]], options: GenerateOptions
    ) -> list[Generation]:
        """Continue several prompts at once, each from an empty cache and as it would alone.

        Args:
            prompts: Text, or token ids; at most as many as the runner has slots.
            options: How to generate; each prompt has draws of its own, from the same seed.

        Returns:
            In the order of the prompts. A generation that ends earlier leaves the others alone.

        Raises:
            RunError: As `generate`; there are more prompts than slots, or none.
        """
        runner = self.runner
        if not 1 <= len(prompts) <= runner.slots:
            raise RunError(
                f"{len(prompts)} prompts were given, the bundle serves {runner.slots} at once",
                hint="build with frontend.shape.batch, or run them one after the other",
                code="too-many-prompts",
            )
        read = [self.text.encode(one) if isinstance(one, str) else list(one) for one in prompts]
        for tokens in read:
            self._check(tokens, options)
        self.last, self._cached = None, []
        self._turn += 1
        growths = [self._growth(tokens, options) for tokens in read]
        try:
            for slot in range(len(read)):
                runner.use_slot(slot)
                runner.rewind(0)
                runner.check_tokens(read[slot])
            for slot, growth in enumerate(growths):
                began = time.perf_counter()
                runner.use_slot(slot)
                growth.take(runner.extend(read[slot]), began=began)
        finally:
            runner.use_slot(0)
        _grow_together(runner, growths)
        return [growth.result() for growth in growths]

    def chat(self, messages: Sequence[Message], options: GenerateOptions) -> Iterator[Token]:
        """Stream the answer to a conversation; what the cache holds of its start is not read again.

        Raises:
            RunError: As `generate`; or there is no chat template, or it refuses the messages.
        """
        tokens = self.text.chat(messages)
        pairs = zip(self._cached, tokens, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # One token at least is read again: the cache keeps no logits.
        return self._start(tokens, options, reuse=min(shared, max(len(tokens) - 1, 0)))

    def complete(self, prompt: str | Sequence[int], options: GenerateOptions) -> Generation:
        """`generate` to its end."""
        for _ in self.generate(prompt, options):
            pass
        assert self.last is not None, "the stream ended without a result"
        return self.last

    def close(self) -> None:
        """Release the model."""
        self.runner.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, tokens: list[int], options: GenerateOptions, *, reuse: int) -> Iterator[Token]:
        """Check everything that can be checked before the model runs."""
        self._check(tokens, options)
        self.runner.rewind(reuse)
        self._cached = self._cached[:reuse]
        self.runner.check_tokens(tokens[reuse:])
        self.last = None
        self._turn += 1
        return self._stream(tokens, options, turn=self._turn)

    def _check(self, tokens: Sequence[int], options: GenerateOptions) -> None:
        if options.stop and not self.text.has_tokenizer:
            raise RunError(
                "stop texts need a tokenizer", hint="leave them out", code="no-tokenizer"
            )
        if len(tokens) > self.runner.context:
            raise RunError(
                f"the prompt has {len(tokens)} tokens, the context holds {self.runner.context}",
                hint="shorten the prompt, or build with a longer frontend.shape.input_ids[1]",
                code="context-full",
            )

    def _stream(self, prompt: list[int], options: GenerateOptions, *, turn: int) -> Iterator[Token]:
        growth = self._growth(prompt, options)
        while not growth.is_over:
            self._check_turn(turn)
            began = time.perf_counter()
            logits = self._extend(growth.tokens[-1:] or prompt[len(self._cached) :])
            token = growth.take(logits, began=began)
            if growth.is_over:
                self.last = growth.result()
            yield token

    def _growth(self, prompt: Sequence[int], options: GenerateOptions) -> Growth:
        runner = self.runner
        return Growth(
            len(prompt),
            options,
            text=self.text,
            context=runner.context,
            vocabulary=runner.vocabulary,
        )

    def _extend(self, tokens: list[int]) -> np.ndarray:
        """Extend the cache; an interrupt leaves `_cached` at what was certain before."""
        logits = self.runner.extend(tokens)
        self._cached.extend(tokens)
        return logits

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise RunError("another generation has started on this session; this one is over")


def _grow_together(runner: Runner, growths: Sequence[Growth]) -> None:
    """A token for each generation that is not over, until all are."""
    while True:
        last = {slot: one.tokens[-1] for slot, one in enumerate(growths) if not one.is_over}
        if not last:
            return
        began = time.perf_counter()
        for slot, logits in runner.extend_each(last).items():
            growths[slot].take(logits, began=began)
