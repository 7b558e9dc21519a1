"""Attention over the cache, one head of keys at a time: its queries stay, keys and values pass by.

Scores, softmax and sums are float32 on chip; a row of scores is never whole, so any context fits.
"""

from dataclasses import dataclass

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.tile_sizes import fitting
from targets.vacc.tile_program import Kernel
from targets.vacc.tile_text import parse_kernel

_MOST_ROWS = 128
_MOST_COLUMNS = 1024


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention.

    Attributes:
        heads: Of the queries.
        kv_heads: Of keys and values.
        tokens: Queries of a head.
        width: Of a head.
        context: Positions that the caches hold.
        scale: Of the scores.
        window: Positions that a query sees, itself included; 0: all before it.
        is_int8: Whether caches hold int8 codes, and a scale for each head of a token.
    """

    heads: int
    kv_heads: int
    tokens: int
    width: int
    context: int
    scale: float
    window: int
    is_int8: bool = False


def attention(shape: AttentionShape, profile: DeviceProfile, *, name: str) -> Kernel:
    """q[heads, tokens, width] over caches [context, kv_heads, width] -> [tokens, heads * width]."""
    group, width = shape.heads // shape.kv_heads, shape.width
    # Queries in float16, sums and the result in float32, a maximum and a total.
    per_row = group * (width * 10 + 8)
    rows = fitting(
        min(shape.tokens, _MOST_ROWS),
        bytes_each=per_row,
        available=profile.tile_bytes // 2,
        multiple=1,
    )
    # Of keys and of values: float16, or a code, a scale, and what they are widened to.
    per_column = 2 * (width * 5 + 4 if shape.is_int8 else width * 2)
    columns = fitting(
        min(shape.context, _MOST_COLUMNS),
        bytes_each=per_column + group * rows * 4,
        available=profile.tile_bytes - rows * per_row,
        multiple=profile.matrix_tile,
    )
    caches = [_Cache("keys", "k", shape), _Cache("values", "v", shape)]
    flat = shape.heads * width
    lines = [
        f"kernel {name} attention (f16[{shape.heads},{shape.tokens},{width}] q, "
        f"{', '.join(text for cache in caches for text in cache.arguments)}, "
        f"i64[1] past_length, i64[1] valid_length) -> (f16[{shape.tokens},{flat}] y)",
        f"  buffer f16[{group},{rows},{width}] qs",
        *(f"  buffer {text}" for cache in caches for text in cache.buffers(columns)),
        f"  buffer f32[{group},{rows},{columns}] scored",
        f"  buffer f32[{group},{rows},{width}] sums",
        f"  buffer f32[{group},{rows}] maxima",
        f"  buffer f32[{group},{rows}] totals",
        f"  buffer f32[{rows},{group * width}] ys",
        "  scalar past = past_length",
        "  scalar valid = valid_length",
        f"  for h in 0:{shape.kv_heads} step 1",
        f"    for m in 0:valid step {rows}",
        f"      load qs = q[{group}*h:+{group}, m:+m.n, 0:+{width}]",
        "      begin sums, maxima, totals = qs",
        f"      for c in 0:past+m+m.n step {columns}",
        *(f"        {line}" for cache in caches for line in cache.loads),
        f"        scores scored = qs, {caches[0].rows} scale={shape.scale!r} row=past+m column=c "
        f"window={shape.window}",
        f"        attend sums, maxima, totals = sums, maxima, totals, scored, {caches[1].rows}",
        "      finish ys = sums, totals",
        f"      store y[m:+m.n, {group * width}*h:+{group * width}] = ys",
    ]
    return parse_kernel("\n".join(lines))


@dataclass(frozen=True)
class _Cache:
    """One of the two caches: its argument, and the buffers that rows of it are read into."""

    name: str
    letter: str
    shape: AttentionShape

    @property
    def arguments(self) -> list[str]:
        positions = f"{self.shape.context},{self.shape.kv_heads}"
        if not self.shape.is_int8:
            return [f"f16[{positions},{self.shape.width}] {self.name}"]
        codes = f"i8[{positions},{self.shape.width}] {self.name}"
        return [codes, f"f32[{positions},1] {self.name}_scale"]

    @property
    def rows(self) -> str:
        """The buffer that computes read."""
        return f"{self.letter}w" if self.shape.is_int8 else f"{self.letter}s"

    def buffers(self, columns: int) -> list[str]:
        of, width = self.letter, self.shape.width
        if not self.shape.is_int8:
            return [f"f16[{columns},1,{width}] {of}s"]
        return [
            f"i8[{columns},1,{width}] {of}s",
            f"f32[{columns},1,1] {of}t",
            f"f32[{columns},1,{width}] {of}w",
        ]

    @property
    def loads(self) -> list[str]:
        of, width = self.letter, self.shape.width
        load = f"load {of}s = {self.name}[c:+c.n, h:+1, 0:+{width}]"
        if not self.shape.is_int8:
            return [load]
        scales = f"load {of}t = {self.name}_scale[c:+c.n, h:+1, 0:+1]"
        return [load, scales, f"scale_groups {of}w = {of}s, {of}t"]
