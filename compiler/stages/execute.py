"""bundle -> Session: prompts in, tokens out, on one KV cache.

A `Session` drives any `Runner`. Text is streamed in whole characters; a conversation keeps in the
cache what its turns share, and reads only what is new.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Literal

import numpy as np

from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner
from compiler.sampling import Sampler
from compiler.text import Message, Text, TextStream

FinishReason = Literal["eos", "length", "stop"]


@dataclass(frozen=True)
class GenerateOptions:
    """How to generate. A value out of range is a `RunError` on construction.

    Attributes:
        max_tokens: Most tokens to generate, at least 1.
        temperature: 0 is greedy: the largest logit, the lowest id on a tie.
        top_p: Draw only from the most probable tokens that together reach this share; in (0, 1].
        seed: Seed of the draws, not negative.
        stop: Texts that end the generation; they and what follows are not in its text.
        keep_logits: Keep the logits of every step in the `Generation`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    keep_logits: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        checks = (
            (self.max_tokens >= 1, f"max_tokens is {self.max_tokens}, expected at least 1"),
            (
                math.isfinite(self.temperature) and self.temperature >= 0,
                f"temperature is {self.temperature}, expected 0 (greedy) or more",
            ),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}, expected more than 0 and at most 1"),
            (self.seed >= 0, f"seed is {self.seed}, expected 0 or more"),
            (all(self.stop), "a stop text is empty"),
        )
        for is_good, message in checks:
            if not is_good:
                raise RunError(message, code="generate-option")


@dataclass(frozen=True)
class Token:
    """One generated token: its id, and the text that became certain with it (often none)."""

    id: int
    text: str


@dataclass(frozen=True)
class Generation:
    """A finished generation.

    Attributes:
        prompt_tokens: Tokens of the prompt, those found in the cache included.
        tokens: Every generated id; an `eos` is the last of them, as in transformers.
        text: Their text, without the ending token and without a stop text.
        finish_reason: `eos`, `stop` (a stop text) or `length` (max_tokens, or a full context).
        prefill_seconds: Until the prompt's logits were there.
        decode_tokens_per_second: Speed of the tokens after the first; 0 where there is only one.
        logits: float32 [len(tokens), vocabulary], each row what its token was chosen from; None
            without `keep_logits`.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prefill_seconds: float
    decode_tokens_per_second: float
    logits: np.ndarray | None


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
        self.runner.rewind(reuse)
        self._cached = self._cached[:reuse]
        self.runner.check_tokens(tokens[reuse:])
        self.last = None
        self._turn += 1
        return self._stream(tokens, options, turn=self._turn)

    def _stream(self, prompt: list[int], options: GenerateOptions, *, turn: int) -> Iterator[Token]:
        sampler = Sampler(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
        writer = TextStream(self.text, stop=options.stop)
        # The last token is never fed back, so one more fits than the cache has positions left.
        limit = min(options.max_tokens, self.runner.context - len(prompt) + 1)
        kept: np.ndarray | None = None
        if options.keep_logits:  # untouched rows cost no memory
            kept = np.empty((limit, self.runner.vocabulary), np.float32)
        tokens: list[int] = []
        pieces: list[str] = []
        reason: FinishReason | None = None
        prefill_seconds = decode_seconds = 0.0
        while reason is None:
            self._check_turn(turn)
            began = time.perf_counter()
            logits = self._extend(tokens[-1:] or prompt[len(self._cached) :])
            if not tokens:
                prefill_seconds = time.perf_counter() - began
            _check_logits(logits, step=len(tokens))
            if kept is not None:
                kept[len(tokens)] = logits
            tokens.append(sampler.pick(logits))
            reason, piece = self._take(tokens, writer, limit=limit)
            pieces.append(piece)
            if len(tokens) > 1:
                decode_seconds += time.perf_counter() - began
            if reason is not None:
                self.last = Generation(
                    prompt_tokens=len(prompt),
                    tokens=tuple(tokens),
                    text="".join(pieces),
                    finish_reason=reason,
                    prefill_seconds=prefill_seconds,
                    decode_tokens_per_second=_rate(len(tokens) - 1, decode_seconds),
                    logits=None if kept is None else kept[: len(tokens)],
                )
            yield Token(tokens[-1], piece)

    def _take(
        self, tokens: list[int], writer: TextStream, *, limit: int
    ) -> tuple[FinishReason | None, str]:
        """The last token's piece of text, and whether the generation ends with it."""
        if tokens[-1] in self.text.eos:
            return "eos", writer.finish()
        piece = writer.push(tokens[-1])
        if writer.is_stopped:
            return "stop", piece
        if len(tokens) < limit:
            return None, piece
        piece += writer.finish()
        return "stop" if writer.is_stopped else "length", piece

    def _extend(self, tokens: list[int]) -> np.ndarray:
        """Extend the cache; an interrupt leaves `_cached` at what was certain before."""
        logits = self.runner.extend(tokens)
        self._cached.extend(tokens)
        return logits

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise RunError("another generation has started on this session; this one is over")


def _check_logits(logits: np.ndarray, *, step: int) -> None:
    """Refuse what no choice can be made from; -inf is a token that is never chosen."""
    largest = np.max(logits)  # NaN where there is one
    if np.isfinite(largest):
        return
    raise RunError(
        f"the logits of step {step} hold {'NaN' if np.isnan(largest) else largest}",
        hint="compare the target with a reference in a wider dtype (python -m compiler compare)",
        code="non-finite-logits",
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
