"""Kernels that move and compute nothing: rows by index, a part of each row, axes in other order."""

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.tile_sizes import fitting
from targets.vacc.tile_program import ITEM_BYTES, Kernel
from targets.vacc.tile_text import parse_kernel


def gather(
    rows: int,
    count: int,
    *,
    width: int,
    dtype: str,
    composite: str,
    profile: DeviceProfile,
    name: str,
) -> Kernel:
    """`count` rows of [rows, width], by indices."""
    each = width * ITEM_BYTES[dtype] + 8
    part = fitting(count, bytes_each=each, available=profile.tile_bytes, multiple=1)
    return parse_kernel(
        f"""
kernel {name} {composite} ({dtype}[{rows},{width}] table, i64[{count}] indices) \
-> ({dtype}[{count},{width}] y)
  buffer i64[{part}] ids
  buffer {dtype}[{part},{width}] xs
  for m in 0:{count} step {part}
    load ids = indices[m:+m.n]
    load xs = table[0:+{rows}, 0:+{width}] rows ids
    store y[m:+m.n, 0:+{width}] = xs
"""
    )


def scaled_rows(
    rows: int, count: int, *, width: int, groups: int, profile: DeviceProfile, name: str
) -> Kernel:
    """`count` rows of int8 codes [rows, width], by indices, each of its groups times its scale."""
    each = width * 5 + groups * 4 + 8
    part = fitting(count, bytes_each=each, available=profile.tile_bytes, multiple=1)
    return parse_kernel(
        f"""
kernel {name} embedding (i8[{rows},{width}] table, f32[{rows},{groups}] scale, \
i64[{count}] indices) -> (f16[{count},{width}] y)
  buffer i64[{part}] ids
  buffer i8[{part},{width}] xs
  buffer f32[{part},{groups}] ss
  buffer f32[{part},{width}] ys
  for m in 0:{count} step {part}
    load ids = indices[m:+m.n]
    load xs = table[0:+{rows}, 0:+{width}] rows ids
    load ss = scale[0:+{rows}, 0:+{groups}] rows ids
    scale_groups ys = xs, ss
    store y[m:+m.n, 0:+{width}] = ys
"""
    )


def columns(
    rows: int,
    width: int,
    *,
    first: int,
    count: int,
    dtype: str,
    profile: DeviceProfile,
    name: str,
) -> Kernel:
    """[rows, count] of [rows, width], from column `first` on."""
    each = count * ITEM_BYTES[dtype]
    part = fitting(rows, bytes_each=each, available=profile.tile_bytes, multiple=1)
    return parse_kernel(
        f"""
kernel {name} move ({dtype}[{rows},{width}] x) -> ({dtype}[{rows},{count}] y)
  buffer {dtype}[{part},{count}] xs
  for m in 0:{rows} step {part}
    load xs = x[m:+m.n, {first}:+{count}]
    store y[m:+m.n, 0:+{count}] = xs
"""
    )


def swapped(
    rows: int, columns: int, *, width: int, dtype: str, profile: DeviceProfile, name: str
) -> Kernel:
    """[columns, rows, width] of [rows, columns, width]."""
    each = width * ITEM_BYTES[dtype]
    part = fitting(rows, bytes_each=each, available=profile.tile_bytes, multiple=1)
    return parse_kernel(
        f"""
kernel {name} move ({dtype}[{rows},{columns},{width}] x) -> ({dtype}[{columns},{rows},{width}] y)
  buffer {dtype}[{part},1,{width}] xs
  for h in 0:{columns} step 1
    for m in 0:{rows} step {part}
      load xs = x[m:+m.n, h:+1, 0:+{width}]
      store y[h:+1, m:+m.n, 0:+{width}] = xs
"""
    )
