"""The rotary embedding, and the angles that it turns by."""

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.tile_sizes import fitting
from targets.vacc.tile_program import Kernel
from targets.vacc.tile_text import parse_kernel


def rotary(
    heads: int,
    tokens: int,
    *,
    width: int,
    is_by_token: bool,
    profile: DeviceProfile,
    name: str,
) -> Kernel:
    """y[heads, tokens, width] of x, which is [tokens, heads, width] where it is by token."""
    angles = 2 * width * 2
    if is_by_token and tokens > 1:
        group, shape = 1, f"{tokens},{heads},{width}"
        region = f"m:+m.n, h:+h.n, 0:+{width}"
    else:
        group, shape = heads, f"{heads},{tokens},{width}"
        region = f"h:+h.n, m:+m.n, 0:+{width}"
    each = group * width * 6 + angles
    count = fitting(tokens, bytes_each=each, available=profile.tile_bytes, multiple=1)
    return parse_kernel(
        f"""
kernel {name} rotary (f16[{shape}] x, f16[{tokens},{width}] cos, f16[{tokens},{width}] sin) \
-> (f16[{heads},{tokens},{width}] y)
  buffer f16[{group},{count},{width}] xs
  buffer f16[{count},{width}] cs
  buffer f16[{count},{width}] sn
  buffer f32[{group},{count},{width}] ys
  for m in 0:{tokens} step {count}
    load cs = cos[m:+m.n, 0:+{width}]
    load sn = sin[m:+m.n, 0:+{width}]
    for h in 0:{heads} step {group}
      load xs = x[{region}]
      rotate ys = xs, cs, sn
      store y[h:+h.n, m:+m.n, 0:+{width}] = ys
"""
    )


def angles(tokens: int, half: int, *, op: str, profile: DeviceProfile, name: str) -> Kernel:
    """The cosine or sine of position * frequency, twice side by side; products are float32."""
    count = fitting(
        tokens, bytes_each=8 + 8 * half, available=profile.tile_bytes - 4 * half, multiple=1
    )
    return parse_kernel(
        f"""
kernel {name} angles (i64[{tokens}] positions, f32[{half}] frequencies) \
-> (f16[{tokens},{2 * half}] y)
  buffer i64[{count}] ps
  buffer f32[{half}] fs
  buffer f32[{count},{2 * half}] ys
  load fs = frequencies[0:+{half}]
  for m in 0:{tokens} step {count}
    load ps = positions[m:+m.n]
    {op} ys = ps, fs
    store y[m:+m.n, 0:+{2 * half}] = ys
"""
    )
