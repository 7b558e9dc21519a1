"""What both forms of attention are built from: static sizes and the function's buffers."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import dataclass

from tvm.tirx import Buffer


@dataclass(frozen=True)
class AttentionShape:
    """Static sizes; a row sees `window` keys at most, or all (0); `scale` multiplies the scores."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    window: int
    scale: float

    @property
    def group(self) -> int:
        """Query heads that share one kv head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Operands:
    """The buffers of the function under construction; shapes as in `attention`."""

    q: Buffer
    k_cache: Buffer
    v_cache: Buffer
    past_length: Buffer
    valid_length: Buffer
    out: Buffer
    # Of int8 caches, [context, kv_heads, 1].
    k_scales: Buffer | None = None
    v_scales: Buffer | None = None
