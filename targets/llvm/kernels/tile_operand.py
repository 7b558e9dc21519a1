"""x as the first operand of AMX's products: panels of two tiles of 16 rows of 64 bytes.

    bfloat16    32 rows of x to a group, rounded to nearest even; its sums are those of x
    int8        32 rows of codes to a group, as they are
    fixed       16 rows of fp32 to a group, in 16 bits of fixed point: x = scale * (256 high + low)
                with the scale absmax / 32767 of a row; one tile holds high, int8, and the other
                low, uint8, whose products are exact

A panel is made once for a run of rows, and all outputs pass over it while it lies in L2.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Literal

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.amx import ROW_BYTES, ROWS
from targets.llvm.kernels.int8_row import row_scale
from targets.llvm.kernels.vector_math import bfloat16_bits, load, splat, store, typed

Form = Literal["bfloat16", "int8", "fixed"]
# What a panel may take: 2 MiB of L2 hold it beside the weights that stream past.
PANEL_BYTES = 1280 * 1024
_LARGEST = 32767.0
_LANES = 16


@dataclass(frozen=True)
class TileOperand:
    """Panels of the rows of x that lie in L2 together, and what their sums are multiplied by.

    Attributes:
        form: How x is held.
        x: fp32 or int8 [rows, inputs].
        given: fp32 [rows], scales of int8 codes.
        steps: Tiles along the inputs.
        groups: Of a panel.
        panel: [groups, steps, 2, 16, 64 bytes].
        scales: fp32 [groups, 16] of the form `fixed`.
    """

    form: Form
    x: Buffer
    given: Buffer | None
    steps: int
    groups: int
    panel: Buffer
    scales: Buffer | None

    @property
    def group_rows(self) -> int:
        """Rows of x of one group."""
        return ROWS if self.form == "fixed" else 2 * ROWS

    @property
    def dtypes(self) -> tuple[str, str]:
        """Elements of a group's first tile and of its second."""
        return ("int8", "uint8") if self.form == "fixed" else (self.form, self.form)

    def fill(self, group: Expr, first: Expr) -> None:
        """Emit a group's tiles from row `first` of x; rows past the end repeat the last one."""
        rows = int(self.x.shape[0])
        with T.serial(self.group_rows) as i:
            row = T.min(first + i, rows - 1) if rows % self.group_rows else first + i
            match self.form:
                case "fixed":
                    self._fixed_row(group, i, row)
                case _:
                    self._row(group, i, row)

    def factor(self, group: Expr, i: Expr, row: Expr) -> Expr | None:
        """What the sums of row i of a group, row `row` of x, are multiplied by."""
        if self.given is not None:
            return self.given[row]
        return None if self.scales is None else self.scales[group, i]

    def _row(self, group: Expr, i: Expr, row: Expr) -> None:
        """Emit one row, in bfloat16 or as the codes that it holds."""
        wide = ROW_BYTES // (2 if self.form == "bfloat16" else 1)

        def part(k: Expr, count: int) -> Expr:
            if self.form == "bfloat16":
                return bfloat16_bits(load(self.x, (row, k), count), count)
            return self.x[row, tirx.Ramp(k, 1, count) if count > 1 else k]

        lanes = _LANES if self.form == "bfloat16" else ROW_BYTES
        zero = tirx.const(0, str(self.panel.dtype))

        def write(step: Expr | int, at: int, count: int) -> None:
            k = step * wide + at
            store(self.panel, (group, step, i // ROWS, i % ROWS, at), part(k, count), lanes=count)

        self._each_part(
            wide,
            lanes,
            write,
            lambda step, at: T.buffer_store(
                self.panel, zero, [group, step, i // ROWS, i % ROWS, at]
            ),
        )

    def _fixed_row(self, group: Expr, i: Expr, row: Expr) -> None:
        """Emit one row's two bytes, and its scale."""
        assert self.scales is not None
        scale = row_scale(self.x, (row,), largest=_LARGEST, lanes=_LANES)
        T.buffer_store(self.scales, scale, [group, i])

        def write(step: Expr | int, at: int, count: int) -> None:
            x = load(self.x, (row, step * ROW_BYTES + at), count)
            whole = T.Bind(T.cast(T.nearbyint(x / splat(scale, count)), typed("int32", count)))
            high = T.cast(whole >> splat(tirx.const(8, "int32"), count), typed("int8", count))
            low = T.cast(whole & splat(tirx.const(255, "int32"), count), typed("int8", count))
            store(self.panel, (group, step, 0, i, at), high, lanes=count)
            store(self.panel, (group, step, 1, i, at), low, lanes=count)

        def clear(step: Expr | int, at: int) -> None:
            for half in range(2):
                T.buffer_store(self.panel, tirx.const(0, "int8"), [group, step, half, i, at])

        self._each_part(ROW_BYTES, _LANES, write, clear)

    def _each_part(self, wide: int, lanes: int, write, clear) -> None:
        """Emit `write` for each vector of the inputs, and `clear` behind the last of them."""
        inputs = int(self.x.shape[1])
        with T.serial(inputs // wide) as step:
            for at in range(0, wide, lanes):
                write(step, at, lanes)
        rest, last = inputs % wide, inputs // wide
        if rest == 0:
            return
        at = 0
        while at < rest:
            count = lanes
            while count > rest - at:
                count //= 2
            write(last, at, count)
            at += count
        for at in range(rest, wide):
            clear(last, at)


def tile_operand(x: Buffer, given: Buffer | None, *, form: Form) -> TileOperand:
    """Emit the scratch of x's panels."""
    rows, inputs = (int(extent) for extent in x.shape)
    element = 2 if form == "bfloat16" else 1
    steps = -(-inputs * element // ROW_BYTES)
    group_rows = ROWS if form == "fixed" else 2 * ROWS
    groups = -(-rows // group_rows)
    runs = -(-groups * steps * 2 * ROWS * ROW_BYTES // PANEL_BYTES)
    groups = -(-groups // runs)
    dtype = "uint16" if form == "bfloat16" else "int8"
    panel = T.alloc_buffer((groups, steps, 2, ROWS, ROW_BYTES // element), dtype)
    scales = T.alloc_buffer((groups, ROWS), "float32") if form == "fixed" else None
    return TileOperand(form, x, given, steps, groups, panel, scales)
