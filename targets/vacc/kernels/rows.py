"""Kernels that take rows as they come: RMS norm, the gated activation, sums, rounding to int8."""

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.tile_sizes import fitting
from targets.vacc.tile_program import Kernel
from targets.vacc.tile_text import parse_kernel


def rms_norm(rows: int, width: int, *, epsilon: float, profile: DeviceProfile, name: str) -> Kernel:
    """The rows x / sqrt(mean(x^2) + epsilon) * weight, the mean in float32."""
    count = _rows(rows, width * 6, profile, kept=width * 4)
    return parse_kernel(
        f"""
kernel {name} rms_norm (f16[{rows},{width}] x, f32[{width}] weight) -> (f16[{rows},{width}] y)
  buffer f16[{count},{width}] xs
  buffer f32[{width}] ws
  buffer f32[{count},{width}] ys
  load ws = weight[0:+{width}]
  for m in 0:{rows} step {count}
    load xs = x[m:+m.n, 0:+{width}]
    rms_norm ys = xs, ws epsilon={epsilon!r}
    store y[m:+m.n, 0:+{width}] = ys
"""
    )


def binary(
    rows: int, width: int, *, op: str, composite: str, profile: DeviceProfile, name: str
) -> Kernel:
    """One operation on two tensors of one shape: `add`, `silu_mul`."""
    count = _rows(rows, width * 8, profile)
    return parse_kernel(
        f"""
kernel {name} {composite} (f16[{rows},{width}] a, f16[{rows},{width}] b) -> (f16[{rows},{width}] y)
  buffer f16[{count},{width}] xa
  buffer f16[{count},{width}] xb
  buffer f32[{count},{width}] ys
  for m in 0:{rows} step {count}
    load xa = a[m:+m.n, 0:+{width}]
    load xb = b[m:+m.n, 0:+{width}]
    {op} ys = xa, xb
    store y[m:+m.n, 0:+{width}] = ys
"""
    )


def rounded_tokens(rows: int, width: int, *, profile: DeviceProfile, name: str) -> Kernel:
    """Each row rounded to int8 codes by its own scale, and widened again."""
    count = _rows(rows, width * 7 + 4, profile)
    return parse_kernel(
        f"""
kernel {name} rounded_tokens (f16[{rows},{width}] x) -> (f16[{rows},{width}] y)
  buffer f16[{count},{width}] xs
  buffer i8[{count},{width}] qs
  buffer f32[{count},1] ss
  buffer f32[{count},{width}] ys
  for m in 0:{rows} step {count}
    load xs = x[m:+m.n, 0:+{width}]
    round_rows qs, ss = xs
    scale_groups ys = qs, ss
    store y[m:+m.n, 0:+{width}] = ys
"""
    )


def _rows(rows: int, bytes_each: int, profile: DeviceProfile, *, kept: int = 0) -> int:
    available = profile.tile_bytes - kept
    return fitting(rows, bytes_each=bytes_each, available=available, multiple=profile.matrix_tile)
