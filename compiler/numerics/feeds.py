"""Inputs for a program's graph: seeded, right-padded, after any number of past tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.contracts.program import Program, TensorSpec
from compiler.contracts.weights import DTYPES

# Of int8 caches, so that they stand for keys and values of about the size of float ones.
_SCALE = 1 / 64

# A token that stands where padding is; its logits and cache rows are nobody's.
PAD_TOKEN = 3


@dataclass(frozen=True)
class Lengths:
    """`past` tokens in the cache, and how many of this call's tokens are real."""

    past: int
    valid: int


def lengths_of(program: Program) -> tuple[Lengths, ...]:
    """A full first window, a padded one after a few tokens, and one that ends at the context."""
    tokens, context = program.tokens, program.context
    padded = max(1, tokens - 3)
    found = (
        Lengths(0, tokens),
        Lengths(min(5, context - padded), padded),
        Lengths(context - max(1, tokens // 2), max(1, tokens // 2)),
    )
    return tuple(dict.fromkeys(found))


def program_feeds(
    program: Program, lengths: Lengths, *, vocabulary: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """What the program takes besides its parameters, at any point of the pipeline.

    Args:
        program: With the traced signature, or that of fold-mask, plan-kv-cache or store-kv-cache.
        lengths: Past and valid tokens.
        vocabulary: Token ids are drawn below it.
        seed: Of the tokens and of the past keys and values.

    Returns:
        int64 ids [1, T], mask [1, past + T] and positions [1, T], or lengths [1]; float caches
        [1, heads, past, head_dim], or [context, heads, head_dim] with zeros past the filled rows;
        of int8 caches [context, heads, head_dim] and their scales [context, heads, 1] likewise.
    """
    random = np.random.default_rng((seed, lengths.past, lengths.valid))
    past, tokens = lengths.past, program.tokens
    ids = np.full((1, tokens), min(PAD_TOKEN, vocabulary - 1), np.int64)
    ids[0, : lengths.valid] = random.integers(0, vocabulary, lengths.valid)
    known = {
        "input_ids": ids,
        "attention_mask": (np.arange(past + tokens) < past + lengths.valid).astype(np.int64)[None],
        "position_ids": np.arange(past, past + tokens, dtype=np.int64)[None],
        "past_length": np.array([past], np.int64),
        "valid_length": np.array([lengths.valid], np.int64),
    }
    feeds: dict[str, np.ndarray] = {}
    for spec in program.inputs():
        if spec.name in known:
            feeds[spec.name] = known[spec.name]
            continue
        values = _drawn(spec, past, random)
        if _is_static_cache(spec.shape, program):
            values[past:] = 0
        feeds[spec.name] = values
    return feeds


def _drawn(spec: TensorSpec, past: int, random: np.random.Generator) -> np.ndarray:
    shape = _shape(spec.shape, past)
    if spec.dtype == "int8":
        return random.integers(-127, 128, shape).astype(np.int8)
    values = random.standard_normal(shape)
    if spec.name.endswith("_scale"):
        values = np.abs(values) * _SCALE
    return values.astype(DTYPES[spec.dtype])


def _shape(shape: Sequence[int | str], past: int) -> list[int]:
    return [past if isinstance(axis, str) else axis for axis in shape]


def _is_static_cache(shape: Sequence[int | str], program: Program) -> bool:
    return len(shape) == 3 and shape[0] == program.context
