"""What a comparison reads: random tokens, texts, conversations, or the tokens of a saved file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.config import BuildConfig
from compiler.contracts.errors import RunError
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.text import Message, Text

# Lengths of the random prompts, in windows: one token, part of a window, one, and more than one.
_WINDOWS = (0.0, 0.4, 1.0, 1.3)
DEFAULT_PROMPTS = (
    "What is the capital of France?",
    "def fibonacci(n):",
    "中国的首都是",
)

Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class InputOptions:
    """What to read.

    Attributes:
        prompts: Texts and conversations, used where the checkpoint has a tokenizer.
        tokens: Greedy tokens of each prompt.
        seed: Of the random prompts.
        has_random: Whether random prompts are read, too.
    """

    prompts: Sequence[str | Conversation] = DEFAULT_PROMPTS
    tokens: int = 16
    seed: int = 0
    has_random: bool = True


def prepared_inputs(
    config: BuildConfig, checkpoint: CheckpointRef, options: InputOptions, progress: Progress
) -> list[tuple[int, ...]]:
    """The prompts as tokens, the random ones first; all leave room for what is generated.

    Raises:
        RunError: Nothing fits the context.
    """
    room = config.frontend.shape.context_or_window - options.tokens
    found = _random(config, vocabulary_of(checkpoint), options, room) if options.has_random else []
    found += _texts(checkpoint, options, room, progress)
    if not found:
        raise RunError(
            f"nothing to compare: {options.tokens} tokens leave {max(room, 0)} for a prompt in a "
            f"context of {config.frontend.shape.context_or_window}",
            hint="ask for fewer tokens, or build with a longer context",
        )
    return found


def text_tokens(checkpoint: CheckpointRef, text: str | None) -> tuple[int, ...] | None:
    """Tokens of a text whose perplexity is asked for; None without one.

    Raises:
        RunError: There is no tokenizer, or the text is too short to surprise anybody.
    """
    if text is None:
        return None
    tokens = tuple(Text.open(checkpoint.path).encode(text))
    if len(tokens) < 2:
        raise RunError(
            f"the perplexity of {len(tokens)} tokens means nothing",
            where="--text",
            hint="give a longer text",
        )
    return tokens


def vocabulary_of(checkpoint: CheckpointRef) -> int:
    """Number of logits."""
    vocabulary = checkpoint.config["vocab_size"]
    assert isinstance(vocabulary, int), "verified with the tensors"
    return vocabulary


def layers_of(checkpoint: CheckpointRef) -> int:
    """Number of decoder layers."""
    layers = checkpoint.config["num_hidden_layers"]
    assert isinstance(layers, int), "verified with the tensors"
    return layers


def digest_of(inputs: Sequence[Sequence[int]]) -> str:
    """sha256 of the prompts' tokens, for the report."""
    return hashlib.sha256(json.dumps([list(one) for one in inputs]).encode()).hexdigest()[:16]


def _random(
    config: BuildConfig, vocabulary: int, options: InputOptions, room: int
) -> list[tuple[int, ...]]:
    """Seeded random tokens of several lengths, as far as they fit the context."""
    generator = np.random.default_rng(options.seed)
    window = config.frontend.shape.window
    lengths = [min(max(1, int(window * share)), room) for share in _WINDOWS]
    return [
        tuple(generator.integers(0, vocabulary, length).tolist())
        for length in dict.fromkeys(lengths)
        if length > 0
    ]


def _texts(
    checkpoint: CheckpointRef, options: InputOptions, room: int, progress: Progress
) -> list[tuple[int, ...]]:
    """The texts as tokens; one that cannot be compared is said, not dropped in silence."""
    text = Text.open(checkpoint.path)
    if options.prompts and not text.has_tokenizer:
        progress.note("the checkpoint has no tokenizer: no text is compared")
        return []
    found: list[tuple[int, ...]] = []
    for prompt in options.prompts:
        ids = text.encode(prompt) if isinstance(prompt, str) else text.chat(list(prompt))
        if 0 < len(ids) <= room:
            found.append(tuple(ids))
        else:
            shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            progress.note(f"left out: {shown[:40]!r} has {len(ids)} tokens, {room} fit")
    return found


def read_prompts(path: Path) -> tuple[str | Conversation, ...]:
    """Prompts of a file: one a line; or, from `.json`, a list of texts or of conversations.

    A conversation is a list of `{"role": ..., "content": ...}`; a file may hold one alone.

    Raises:
        RunError: It cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        message = f"cannot be read: {e.strerror}"
        raise RunError(message, where=str(path), hint="see --prompts", code="usage") from e
    except UnicodeDecodeError as e:
        raise RunError(f"is not UTF-8: {e}", where=str(path), code="usage") from e
    found = _json_prompts(path, text) if path.suffix == ".json" else tuple(text.splitlines())
    kept = tuple(prompt for prompt in found if not isinstance(prompt, str) or prompt.strip())
    if not kept:
        raise RunError("holds no prompt", where=str(path), hint="write one a line", code="usage")
    return kept


def _json_prompts(path: Path, text: str) -> tuple[str | Conversation, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise RunError(f"is not JSON: {e}", where=str(path), code="usage") from e
    items = found if isinstance(found, list) else [None]
    if items and all(isinstance(item, dict) for item in items):
        items = [items]
    prompts = tuple(_json_prompt(item) for item in items)
    if any(prompt is None for prompt in prompts):
        raise RunError(
            "is not a list of texts or of conversations",
            where=str(path),
            hint='write ["first prompt", "second prompt"], or '
            '[[{"role": "user", "content": "first question"}]]',
            code="usage",
        )
    return tuple(prompt for prompt in prompts if prompt is not None)


def _json_prompt(item: object) -> str | Conversation | None:
    if isinstance(item, str):
        return item
    if not isinstance(item, list) or not item:
        return None
    messages: list[Message] = []
    for message in item:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        messages.append({"role": role, "content": content})
    return tuple(messages)
