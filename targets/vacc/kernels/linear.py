"""y = x . w^T (* scale) (+ bias): the weight's rows stay on chip while rows of x pass by.

Where a row of x and one of w do not fit together, the sum over inputs is taken in parts.
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
        weight_dtype: `f16`, or `i8` with a scale for each output.
        has_bias: Whether a float32 bias is added.
        result: dtype of y.
    """

    rows: int
    inputs: int
    outputs: int
    weight_dtype: str = "f16"
    has_bias: bool = False
    result: str = "f16"


def linear(shape: LinearShape, profile: DeviceProfile, *, name: str, composite: str) -> Kernel:
    """The kernel; its arguments are x, weight, and scale and bias where it has them."""
    has_scale = shape.weight_dtype == "i8"
    item, tile = ITEM_BYTES[shape.weight_dtype], profile.matrix_tile
    rows = min(shape.rows, _MOST_ROWS)
    vectors = 4 * (has_scale + shape.has_bias)
    inputs = shape.inputs
    left = profile.tile_bytes - rows * inputs * 2
    column = inputs * item + rows * 4 + vectors
    if left < column * min(tile, shape.outputs):
        # Sums in parts: as many outputs as rows, and as many inputs as then fit.
        outputs = min(shape.outputs, _MOST_ROWS)
        left = profile.tile_bytes - outputs * (rows * 4 + vectors)
        each = rows * 2 + outputs * item
        inputs = fitting(shape.inputs, bytes_each=each, available=left, multiple=tile)
    else:
        outputs = fitting(shape.outputs, bytes_each=column, available=left, multiple=tile)
    return parse_kernel(
        "\n".join(
            [
                *_head(shape, name, composite),
                f"  buffer f16[{rows},{inputs}] xs",
                f"  buffer {shape.weight_dtype}[{outputs},{inputs}] ws",
                *([f"  buffer f32[{outputs}] ss"] if has_scale else []),
                *([f"  buffer f32[{outputs}] bs"] if shape.has_bias else []),
                f"  buffer f32[{rows},{outputs}] acc",
                *_body(shape, rows=rows, outputs=outputs, inputs=inputs),
            ]
        )
    )


def _head(shape: LinearShape, name: str, composite: str) -> list[str]:
    arguments = [
        f"f16[{shape.rows},{shape.inputs}] x",
        f"{shape.weight_dtype}[{shape.outputs},{shape.inputs}] weight",
    ]
    if shape.weight_dtype == "i8":
        arguments.append(f"f32[{shape.outputs}] scale")
    if shape.has_bias:
        arguments.append(f"f32[{shape.outputs}] bias")
    result = f"{shape.result}[{shape.rows},{shape.outputs}] y"
    return [f"kernel {name} {composite} ({', '.join(arguments)}) -> ({result})"]


def _body(shape: LinearShape, *, rows: int, outputs: int, inputs: int) -> list[str]:
    after = []
    if shape.weight_dtype == "i8":
        after += ["load ss = scale[n:+n.n]", "scale_columns acc = acc, ss"]
    if shape.has_bias:
        after += ["load bs = bias[n:+n.n]", "add_row acc = acc, bs"]
    after.append("store y[m:+m.n, n:+n.n] = acc")
    over_outputs = f"for n in 0:{shape.outputs} step {outputs}"
    over_rows = f"for m in 0:{shape.rows} step {rows}"
    if inputs < shape.inputs:
        first = f"0:+{inputs}"
        return [
            f"  {over_rows}",
            f"    {over_outputs}",
            f"      load xs = x[m:+m.n, {first}]",
            f"      load ws = weight[n:+n.n, {first}]",
            "      dot acc = xs, ws",
            f"      for k in {inputs}:{shape.inputs} step {inputs}",
            "        load xs = x[m:+m.n, k:+k.n]",
            "        load ws = weight[n:+n.n, k:+k.n]",
            "        dot acc = acc, xs, ws",
            *(f"      {line}" for line in after),
        ]
    load_x = f"load xs = x[m:+m.n, 0:+{inputs}]"
    load_w = f"load ws = weight[n:+n.n, 0:+{inputs}]"
    outer, inner = (over_rows, over_outputs), (load_x, load_w)
    if rows < shape.rows:
        outer, inner = (over_outputs, over_rows), (load_w, load_x)
    return [
        f"  {outer[0]}",
        f"    {inner[0]}",
        f"    {outer[1]}",
        f"      {inner[1]}",
        "      dot acc = xs, ws",
        *(f"      {line}" for line in after),
    ]
