"""What a generated Qwen block is like: drawn from a seed, and made simpler one choice at a time."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compiler.contracts.program import Phase

Projection = Literal["q", "k", "v", "o", "gate", "up", "down"]
StoredDtype = Literal["float32", "float16", "bfloat16"]

PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v", "o", "gate", "up", "down")
QKV: tuple[Projection, ...] = ("q", "k", "v")
_EPSILONS = (1e-6, 1e-5, 1e-3)
# How often a block is spelled by another exporter, and how often it then takes each such spelling.
_FOREIGN, _EACH = 0.4, 0.7


@dataclass(frozen=True)
class BlockOptions:
    """Everything that decides the graph of a small Qwen model; no two choices depend on each other.

    The defaults are a plain Qwen2 of one layer, spelled as this compiler's own trace spells it
    after `fold-constants`. From `repeats_keys` on, the choices are spellings of other exporters.

    Attributes:
        phase: Which of the two graphs.
        tokens: Tokens of a prefill window; decode has one.
        context: Positions of the cache.
        layers: Decoder layers.
        kv_heads: Key heads.
        group: Query heads of one key head (1: multi-head attention).
        head_dim: Width of a head.
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        vocabulary: Rows of the embedding.
        biases: Projections that carry a bias.
        quantized: Projections whose weight is int8, read through DequantizeLinear.
        has_qk_norm: Whether queries and keys are normed by head, as in Qwen3.
        is_tied: Whether the head is the embedding.
        dtype: How the checkpoint stores floats.
        epsilon: Of the norms.
        theta: Base of the rotary frequencies.
        rotary_scale: What cosines and sines are multiplied by, as YaRN does.
        squares: `Pow(x, 2)` or `Mul(x, x)`.
        inverse: `Reciprocal(r)` or `Div(1, r)`.
        has_computed_shapes: Whether shapes and axes are made by Concat and Reshape of constants, as
            exporters leave them.
        is_swapped: Whether operands of commutative operators stand in either order.
        has_identities: Whether Identity nodes stand here and there.
        repeats_keys: Whether each query head reads a copy of its key head, in place of grouped
            queries.
        scales_operands: Whether queries and keys are scaled by a root each, in place of scores.
        turns_by_reshape: Whether repeated keys are turned by a Transpose between two Reshapes.
        has_nan_guard: Whether NaN among the attention's weights becomes 0.
        has_own_masks: Whether each layer makes its mask anew.
        repeats_tables: Whether cosines and sines are repeated over the head, in place of angles.
        asks_lengths: Whether shapes ask the token ids for their number, and leave heads to be
            inferred.
        seed: Of the places where operands are swapped and Identity nodes stand.
    """

    phase: Phase = "prefill"
    tokens: int = 4
    context: int = 9
    layers: int = 1
    kv_heads: int = 1
    group: int = 2
    head_dim: int = 4
    hidden: int = 8
    intermediate: int = 12
    vocabulary: int = 16
    biases: tuple[Projection, ...] = QKV
    quantized: tuple[Projection, ...] = ()
    has_qk_norm: bool = False
    is_tied: bool = False
    dtype: StoredDtype = "float32"
    epsilon: float = 1e-6
    theta: float = 10000.0
    rotary_scale: float = 1.0
    squares: Literal["Pow", "Mul"] = "Pow"
    inverse: Literal["Reciprocal", "Div"] = "Reciprocal"
    has_computed_shapes: bool = False
    is_swapped: bool = False
    has_identities: bool = False
    repeats_keys: bool = False
    scales_operands: bool = False
    turns_by_reshape: bool = False
    has_nan_guard: bool = False
    has_own_masks: bool = False
    repeats_tables: bool = False
    asks_lengths: bool = False
    seed: int = 0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def window(self) -> int:
        """Tokens of one call."""
        return self.tokens if self.phase == "prefill" else 1


def draw_options(seed: int, *, phases: Sequence[Phase]) -> BlockOptions:
    """A block drawn from `seed`, in one of `phases`; equal seeds give equal blocks."""
    draw = random.Random(seed)
    share = _EACH if draw.random() < _FOREIGN else 0.0
    tokens = draw.randint(2, 6)
    return BlockOptions(
        phase=draw.choice(list(phases)),
        tokens=tokens,
        context=tokens + draw.randint(0, 7),
        layers=draw.choice((1, 1, 2, 3)),
        kv_heads=draw.choice((1, 1, 2, 3)),
        group=draw.choice((1, 2, 3, 4)),
        head_dim=draw.choice((2, 4, 6, 8)),
        hidden=draw.choice((6, 8, 12, 16)),
        intermediate=draw.choice((8, 10, 12, 20)),
        vocabulary=draw.choice((11, 16, 24)),
        biases=_draw_biases(draw),
        quantized=_draw_subset(draw) if draw.random() < 0.3 else (),
        has_qk_norm=draw.random() < 0.25,
        is_tied=draw.random() < 0.4,
        dtype=draw.choice(("float32", "float32", "float16", "bfloat16")),
        epsilon=draw.choice(_EPSILONS),
        squares=draw.choice(("Pow", "Pow", "Mul")),
        inverse=draw.choice(("Reciprocal", "Reciprocal", "Div")),
        has_computed_shapes=draw.random() < 0.3,
        is_swapped=draw.random() < 0.4,
        has_identities=draw.random() < 0.25,
        repeats_keys=draw.random() < share,
        scales_operands=draw.random() < share,
        turns_by_reshape=draw.random() < share,
        has_nan_guard=draw.random() < share,
        has_own_masks=draw.random() < share,
        repeats_tables=draw.random() < share,
        asks_lengths=draw.random() < share,
        seed=seed,
    )


def simpler_options(options: BlockOptions) -> Iterator[BlockOptions]:
    """The blocks that are one step plainer, the largest steps first."""
    plain = BlockOptions(phase=options.phase, seed=options.seed)
    for layers in range(1, options.layers):
        yield replace(options, layers=layers)
    names = (
        "quantized",
        "has_qk_norm",
        "repeats_keys",
        "scales_operands",
        "turns_by_reshape",
        "has_nan_guard",
        "has_own_masks",
        "repeats_tables",
        "asks_lengths",
        "has_computed_shapes",
        "has_identities",
        "is_swapped",
        "dtype",
        "is_tied",
        "squares",
        "inverse",
        "epsilon",
        "theta",
        "rotary_scale",
        "kv_heads",
        "group",
        "head_dim",
        "hidden",
        "intermediate",
        "vocabulary",
    )
    for name in names:
        simpler = replace(options, **{name: getattr(plain, name)})
        if simpler != options:
            yield simpler
    if options.biases not in (QKV, ()):
        yield replace(options, biases=QKV)
    if options.biases:
        yield replace(options, biases=())
    lengths = replace(options, tokens=plain.tokens, context=plain.context)
    if lengths != options:
        yield lengths


def _draw_biases(draw: random.Random) -> tuple[Projection, ...]:
    """Mostly what Qwen2 and Llama have, sometimes any combination."""
    kind = draw.random()
    if kind < 0.6:
        return QKV
    return () if kind < 0.75 else _draw_subset(draw)


def _draw_subset(draw: random.Random) -> tuple[Projection, ...]:
    return tuple(name for name in PROJECTIONS if draw.random() < 0.5)
