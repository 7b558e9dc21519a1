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
    """One layer's attention; `window` 0 sees everything before."""

    heads: int
    kv_heads: int
    tokens: int
    width: int
    context: int
    scale: float
    window: int


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
    columns = fitting(
        min(shape.context, _MOST_COLUMNS),
        bytes_each=width * 4 + group * rows * 4,
        available=profile.tile_bytes - rows * per_row,
        multiple=profile.matrix_tile,
    )
    cache = f"f16[{shape.context},{shape.kv_heads},{width}]"
    flat = shape.heads * width
    return parse_kernel(
        f"""
kernel {name} attention (f16[{shape.heads},{shape.tokens},{width}] q, {cache} keys, \
{cache} values, i64[1] past_length, i64[1] valid_length) -> (f16[{shape.tokens},{flat}] y)
  buffer f16[{group},{rows},{width}] qs
  buffer f16[{columns},1,{width}] ks
  buffer f16[{columns},1,{width}] vs
  buffer f32[{group},{rows},{columns}] scored
  buffer f32[{group},{rows},{width}] sums
  buffer f32[{group},{rows}] maxima
  buffer f32[{group},{rows}] totals
  buffer f32[{rows},{group * width}] ys
  scalar past = past_length
  scalar valid = valid_length
  for h in 0:{shape.kv_heads} step 1
    for m in 0:valid step {rows}
      load qs = q[{group}*h:+{group}, m:+m.n, 0:+{width}]
      begin sums, maxima, totals = qs
      for c in 0:past+m+m.n step {columns}
        load ks = keys[c:+c.n, h:+1, 0:+{width}]
        load vs = values[c:+c.n, h:+1, 0:+{width}]
        scores scored = qs, ks scale={shape.scale!r} row=past+m column=c window={shape.window}
        attend sums, maxima, totals = sums, maxima, totals, scored, vs
      finish ys = sums, totals
      store y[m:+m.n, {group * width}*h:+{group * width}] = ys
"""
    )


def cache_update(
    tokens: int,
    heads: int,
    *,
    width: int,
    context: int,
    is_by_head: bool,
    profile: DeviceProfile,
    name: str,
) -> Kernel:
    """The valid rows of [tokens, heads, width], or [heads, tokens, width], at past_length."""
    is_by_head = is_by_head and tokens > 1
    shape = f"{heads},{tokens},{width}" if is_by_head else f"{tokens},{heads},{width}"
    group = 1 if is_by_head else heads
    count = fitting(tokens, bytes_each=group * width * 2, available=profile.tile_bytes, multiple=1)
    region = "h:+h.n, t:+t.n" if is_by_head else "t:+t.n, h:+h.n"
    return parse_kernel(
        f"""
kernel {name} cache_update (f16[{shape}] rows, i64[1] past_length, i64[1] valid_length) \
-> (f16[{context},{heads},{width}] cache)
  buffer f16[{count},{group},{width}] xs
  scalar past = past_length
  scalar valid = valid_length
  for t in 0:valid step {count}
    for h in 0:{heads} step {group}
      load xs = rows[{region}, 0:+{width}]
      store cache[past+t:+t.n, h:+h.n, 0:+{width}] = xs
"""
    )
