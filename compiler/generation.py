"""One generation as it grows: logits in, tokens and their text out, until it ends."""

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.contracts.errors import RunError
from compiler.sampling import Sampler
from compiler.text import Text, TextStream

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


class Growth:
    """A generation under way.

    Args:
        prompt_tokens: Tokens of the prompt.
        options: How to generate.
        text: The tokenizer.
        context: Positions that the cache holds.
        vocabulary: Number of logits.

    Attributes:
        tokens: Generated so far.
    """

    def __init__(
        self,
        prompt_tokens: int,
        options: GenerateOptions,
        *,
        text: Text,
        context: int,
        vocabulary: int,
    ) -> None:
        self.tokens: list[int] = []
        self._prompt_tokens = prompt_tokens
        self._text = text
        self._sampler = Sampler(
            temperature=options.temperature, top_p=options.top_p, seed=options.seed
        )
        self._writer = TextStream(text, stop=options.stop)
        # The last token is never fed back, so one more fits than the cache has positions left.
        self._limit = min(options.max_tokens, context - prompt_tokens + 1)
        self._kept: np.ndarray | None = None
        if options.keep_logits:  # untouched rows cost no memory
            self._kept = np.empty((self._limit, vocabulary), np.float32)
        self._pieces: list[str] = []
        self._reason: FinishReason | None = None
        self._prefill_seconds = self._decode_seconds = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and `result` is there."""
        return self._reason is not None

    def take(self, logits: np.ndarray, *, began: float) -> Token:
        """Choose the next token.

        Args:
            logits: float32 [vocabulary].
            began: `time.perf_counter()` before the model ran for them.

        Raises:
            RunError: They are not numbers.
        """
        if not self.tokens:
            self._prefill_seconds = time.perf_counter() - began
        _check_logits(logits, step=len(self.tokens))
        if self._kept is not None:
            self._kept[len(self.tokens)] = logits
        self.tokens.append(self._sampler.pick(logits))
        self._reason, piece = self._written()
        self._pieces.append(piece)
        if len(self.tokens) > 1:
            self._decode_seconds += time.perf_counter() - began
        return Token(self.tokens[-1], piece)

    def result(self) -> Generation:
        """The finished generation."""
        assert self._reason is not None, "the generation is not over"
        count = len(self.tokens)
        return Generation(
            prompt_tokens=self._prompt_tokens,
            tokens=tuple(self.tokens),
            text="".join(self._pieces),
            finish_reason=self._reason,
            prefill_seconds=self._prefill_seconds,
            decode_tokens_per_second=_rate(count - 1, self._decode_seconds),
            logits=None if self._kept is None else self._kept[:count],
        )

    def _written(self) -> tuple[FinishReason | None, str]:
        """Whether the generation ends with the last token, and its piece of text."""
        if self.tokens[-1] in self._text.eos:
            return "eos", self._writer.finish()
        piece = self._writer.push(self.tokens[-1])
        if self._writer.is_stopped:
            return "stop", piece
        if len(self.tokens) < self._limit:
            return None, piece
        piece += self._writer.finish()
        return "stop" if self._writer.is_stopped else "length", piece


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
