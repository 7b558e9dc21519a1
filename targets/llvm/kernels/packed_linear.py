"""y = x @ weight.T + bias for one or several packed weights over one x, on CPUs with AMX.

A row goes by `row_linear`, many by `tile_linear`. Several weights (q, k and v; gate and up) share
the layout of x and one launch of the threads; they keep results of their own, or gate and up give
their activation.
"""

# TVM annotates its shapes without plain integers.
# pyright: reportArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.packed_weight import Result, packed_arguments
from targets.llvm.kernels.parallel_loop import limit_argument
from targets.llvm.kernels.row_linear import row_products
from targets.llvm.kernels.tile_linear import tile_products
from targets.llvm.kernels.tile_operand import Form, tile_operand


@dataclass(frozen=True)
class PackedMatrix:
    """One weight of the product: its rows, and whether a bias is added."""

    outputs: int
    has_bias: bool = False


def packed_linear(
    rows: int,
    matrices: Sequence[PackedMatrix],
    *,
    inputs: int,
    weight_dtype: str,
    x_dtype: str = "float32",
    is_rounded: bool = False,
    has_limit: bool = False,
    is_gated: bool = False,
) -> PrimFunc:
    """Build the product for static shapes.

    Args:
        rows: Rows of x; 1 is decode.
        matrices: The weights, each [outputs, inputs] before it was packed.
        inputs: Columns of x and of the weights.
        weight_dtype: bfloat16 or int8.
        x_dtype: float32, or int8 for codes with a scale for each row; then weights are int8.
        is_rounded: Whether fp32 x is rounded to bfloat16 before it is multiplied by bfloat16; else
            it is multiplied as it is, which for many rows is slow.
        has_limit: Whether only the first `valid_length` rows are wanted.
        is_gated: Whether the two weights are gate and up, and silu(gate) * up the one result.

    Returns:
        A scheduled function of x [rows, inputs], (of codes x_scales [rows] fp32,) for each weight
        the packed weight, (scale [outputs] fp32 with int8,) (bias [outputs] fp32,) then
        (valid_length [1] int64,) and y [rows, outputs] fp32 for each weight, or for both.
    """
    is_codes = x_dtype == "int8"
    assert weight_dtype == "int8" or not is_codes, "codes are multiplied by codes"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("gated_linear" if is_gated else "packed_linear")
        x = T.arg("x", T.buffer((rows, inputs), x_dtype))
        given = T.arg("x_scales", T.buffer((rows,), "float32")) if is_codes else None
        given_weights = [
            packed_arguments(i, one.outputs, inputs, dtype=weight_dtype, has_bias=one.has_bias)
            for i, one in enumerate(matrices)
        ]
        valid = limit_argument(has_limit)
        ys = [
            T.arg(f"y{i}", T.buffer((rows, one.outputs), "float32"))
            for i, one in enumerate(matrices[:1] if is_gated else matrices)
        ]
        weights = [one.weight() for one in given_weights]
        if is_gated:
            results = [Result(weights, ys[0])]
        else:
            results = [Result([weight], y) for weight, y in zip(weights, ys, strict=True)]
        if rows == 1 or (weight_dtype == "bfloat16" and not is_rounded):
            row_products(x, given, results)
        else:
            form: Form = "bfloat16" if weight_dtype == "bfloat16" else "fixed"
            operand = tile_operand(x, given, form="int8" if is_codes else form)
            tile_products(operand, results, valid=valid)
    return finished(builder)
