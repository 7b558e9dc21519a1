"""New rows enter a cache where past_length says: as they are, or rounded to int8 on the way."""

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.tile_sizes import fitting
from targets.vacc.tile_program import Kernel
from targets.vacc.tile_text import parse_kernel


def cache_update(
    tokens: int,
    heads: int,
    *,
    width: int,
    context: int,
    is_by_head: bool,
    is_int8: bool = False,
    profile: DeviceProfile,
    name: str,
) -> Kernel:
    """The valid rows of [tokens, heads, width], or [heads, tokens, width], at past_length.

    With `is_int8` a second result holds the scale of each head of a token, [context, heads, 1].
    """
    is_by_head = is_by_head and tokens > 1
    rows = f"{heads},{tokens},{width}" if is_by_head else f"{tokens},{heads},{width}"
    group = 1 if is_by_head else heads
    each = group * (width * 3 + 4 if is_int8 else width * 2)
    count = fitting(tokens, bytes_each=each, available=profile.tile_bytes, multiple=1)
    region = "h:+h.n, t:+t.n" if is_by_head else "t:+t.n, h:+h.n"
    shape = f"{group},{count}" if is_by_head else f"{count},{group}"
    results = [f"f16[{context},{heads},{width}] cache"]
    rounded: list[str] = []
    stores = [f"store cache[past+t:+t.n, h:+h.n, 0:+{width}] = {'qs' if is_int8 else 'xs'}"]
    if is_int8:
        results = [f"i8[{context},{heads},{width}] cache", f"f32[{context},{heads},1] scales"]
        rounded = [f"  buffer i8[{shape},{width}] qs", f"  buffer f32[{shape},1] ss"]
        stores = ["round_rows qs, ss = xs", *stores]
        stores.append("store scales[past+t:+t.n, h:+h.n, 0:+1] = ss")
    lines = [
        f"kernel {name} cache_update (f16[{rows}] rows, i64[1] past_length, i64[1] valid_length) "
        f"-> ({', '.join(results)})",
        f"  buffer f16[{shape},{width}] xs",
        *rounded,
        "  scalar past = past_length",
        "  scalar valid = valid_length",
        f"  for t in 0:valid step {count}",
        f"    for h in 0:{heads} step {group}",
        f"      load xs = rows[{region}, 0:+{width}]",
        *(f"      {line}" for line in stores),
    ]
    return parse_kernel("\n".join(lines))
