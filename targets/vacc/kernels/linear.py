"""y = x . w^T (* scale) (+ bias): the weight's rows stay on chip while rows of x pass by.

Where a row of x and one of w do not fit together, the sum over inputs is taken in parts. Codes with
a scale for each output are multiplied as they are and the sum is scaled; with a scale for each
group of inputs they are widened on chip first.
"""

from dataclasses import dataclass

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.tile_sizes import fitting
from targets.vacc.tile_program import ITEM_BYTES, Kernel
from targets.vacc.tile_text import parse_kernel

# Rows of x at a time: more are not reused better than weights are.
_MOST_ROWS = 256


@dataclass(frozen=True)
class LinearShape:
    """One linear: rows of x, its inputs and outputs.

    Attributes:
        rows: Tokens.
        inputs: Of one output.
        outputs: Rows of the weight.
        weight_dtype: `f16`, or `i8` with scales.
        group: Inputs that share a scale; 0: all of an output.
        has_bias: Whether a float32 bias is added.
        result: dtype of y.
    """

    rows: int
    inputs: int
    outputs: int
    weight_dtype: str = "f16"
    group: int = 0
    has_bias: bool = False
    result: str = "f16"

    @property
    def is_scaled_after(self) -> bool:
        """Whether sums are scaled, not weights."""
        return self.weight_dtype == "i8" and not self.group


def linear(shape: LinearShape, profile: DeviceProfile, *, name: str, composite: str) -> Kernel:
    """The kernel; its arguments are x, weight, and scale and bias where it has them."""
    tile = profile.matrix_tile
    rows = min(shape.rows, _MOST_ROWS)
    vectors = 4 * (shape.is_scaled_after + shape.has_bias)
    inputs, each = shape.inputs, _weight_bytes(shape)
    left = profile.tile_bytes - rows * inputs * 2
    column = inputs * each + rows * 4 + vectors
    if left < column * min(tile, shape.outputs):
        # Sums in parts: outputs for half the chip, and as many inputs as then fit.
        outputs = fitting(
            min(shape.outputs, _MOST_ROWS),
            bytes_each=rows * 4 + vectors,
            available=profile.tile_bytes // 2,
            multiple=tile,
        )
        left = profile.tile_bytes - outputs * (rows * 4 + vectors)
        multiple = shape.group or tile
        part = fitting(
            shape.inputs,
            bytes_each=rows * 2 + outputs * each,
            available=left,
            multiple=multiple,
        )
        inputs = max(part, shape.group)
    else:
        outputs = fitting(shape.outputs, bytes_each=column, available=left, multiple=tile)
    return parse_kernel(
        "\n".join(
            [
                *_head(shape, name, composite),
                f"  buffer f16[{rows},{inputs}] xs",
                f"  buffer {shape.weight_dtype}[{outputs},{inputs}] ws",
                *_scale_buffers(shape, outputs, inputs),
                *([f"  buffer f32[{outputs}] bs"] if shape.has_bias else []),
                f"  buffer f32[{rows},{outputs}] acc",
                *_body(shape, rows=rows, outputs=outputs, inputs=inputs),
            ]
        )
    )


def _weight_bytes(shape: LinearShape) -> int:
    """On chip, of a weight and what it is widened to; a group's scale is less than one a weight."""
    return ITEM_BYTES[shape.weight_dtype] + (4 + -(-4 // shape.group) if shape.group else 0)


def _scale_buffers(shape: LinearShape, outputs: int, inputs: int) -> list[str]:
    if shape.is_scaled_after:
        return [f"  buffer f32[{outputs}] ss"]
    if not shape.group:
        return []
    return [
        f"  buffer f32[{outputs},{inputs // shape.group}] ss",
        f"  buffer f32[{outputs},{inputs}] wide",
    ]


def _head(shape: LinearShape, name: str, composite: str) -> list[str]:
    arguments = [
        f"f16[{shape.rows},{shape.inputs}] x",
        f"{shape.weight_dtype}[{shape.outputs},{shape.inputs}] weight",
    ]
    if shape.is_scaled_after:
        arguments.append(f"f32[{shape.outputs}] scale")
    if shape.group:
        arguments.append(f"f32[{shape.outputs},{shape.inputs // shape.group}] scale")
    if shape.has_bias:
        arguments.append(f"f32[{shape.outputs}] bias")
    result = f"{shape.result}[{shape.rows},{shape.outputs}] y"
    return [f"kernel {name} {composite} ({', '.join(arguments)}) -> ({result})"]


def _load_weight(shape: LinearShape, columns: str, groups: str) -> list[str]:
    """Some columns of the weight, and where they have scales of their own, widened."""
    load = f"load ws = weight[n:+n.n, {columns}]"
    if not shape.group:
        return [load]
    return [load, f"load ss = scale[n:+n.n, {groups}]", "scale_groups wide = ws, ss"]


def _body(shape: LinearShape, *, rows: int, outputs: int, inputs: int) -> list[str]:
    weight = "wide" if shape.group else "ws"
    after = []
    if shape.is_scaled_after:
        after += ["load ss = scale[n:+n.n]", "scale_columns acc = acc, ss"]
    if shape.has_bias:
        after += ["load bs = bias[n:+n.n]", "add_row acc = acc, bs"]
    after.append("store y[m:+m.n, n:+n.n] = acc")
    over_outputs = f"for n in 0:{shape.outputs} step {outputs}"
    over_rows = f"for m in 0:{shape.rows} step {rows}"
    dot = f"dot acc = xs, {weight}"
    # Steps of the sum: inputs, or groups of them.
    unit = shape.group or 1
    step, steps = inputs // unit, shape.inputs // unit
    load_x = f"load xs = x[m:+m.n, 0:+{inputs}]"
    load_w = _load_weight(shape, f"0:+{inputs}", f"0:+{step}")
    if inputs < shape.inputs:
        columns = f"{unit}*k:+{unit}*k.n" if shape.group else "k:+k.n"
        return [
            f"  {over_rows}",
            f"    {over_outputs}",
            *(f"      {line}" for line in (load_x, *load_w, dot)),
            f"      for k in {step}:{steps} step {step}",
            f"        load xs = x[m:+m.n, {columns}]",
            *(f"        {line}" for line in _load_weight(shape, columns, "k:+k.n")),
            f"        dot acc = acc, xs, {weight}",
            *(f"      {line}" for line in after),
        ]
    outer, inner = (over_rows, [load_x]), (over_outputs, load_w)
    if rows < shape.rows:
        outer, inner = (over_outputs, load_w), (over_rows, [load_x])
    return [
        f"  {outer[0]}",
        *(f"    {line}" for line in outer[1]),
        f"    {inner[0]}",
        *(f"      {line}" for line in (*inner[1], dot, *after)),
    ]
