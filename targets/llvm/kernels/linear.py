"""y = x @ weight.T + bias, for the checkpoint's own [outputs, inputs] weight, of any stored dtype.

Few rows (decode) go by `dot_products`, many (prefill) by `outer_products`. An int8 weight has an
fp32 scale for each output, or for each group of inputs of each output; like every other it is
widened in registers, or in a panel that stays in L1.
"""

# TVM annotates its shapes without plain integers.
# pyright: reportArgumentType=false

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.dot_products import dot_products
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.outer_products import outer_products
from targets.llvm.kernels.parallel_loop import limit_argument
from targets.llvm.kernels.register_tile import tile_shape
from targets.llvm.kernels.stored_weight import weight_arguments

DOT_ROWS = 4


def linear(
    rows: int,
    outputs: int,
    *,
    inputs: int,
    weight_dtype: str,
    has_bias: bool,
    features: CpuFeatures,
    group: int = 0,
    has_limit: bool = False,
) -> PrimFunc:
    """Build the product for static shapes.

    Args:
        rows: Rows of x; 1 is decode. Up to four use dot products.
        outputs: Rows of the weight.
        inputs: Columns of x and of the weight.
        weight_dtype: float32, bfloat16, float16 or int8; widened in registers, accumulated in fp32.
        has_bias: Whether a bias is added.
        features: What the code may use.
        group: Of an int8 weight: inputs that share a scale, a divisor of their number; 0 for all.
        has_limit: Whether only the first `valid_length` rows are wanted.

    Returns:
        A scheduled function of x [rows, inputs] fp32, weight [outputs, inputs], (scale [outputs] or
        [outputs, inputs / group] fp32, with int8,) (bias [outputs] fp32,)
        (valid_length [1] int64,) y [rows, outputs] fp32.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("linear")
        x = T.arg("x", T.buffer((rows, inputs), "float32"))
        weight = weight_arguments(outputs, inputs, dtype=weight_dtype, group=group)
        bias = T.arg("bias", T.buffer((outputs,), "float32")) if has_bias else None
        valid = limit_argument(has_limit)
        y = T.arg("y", T.buffer((rows, outputs), "float32"))
        if rows <= DOT_ROWS:
            dot_products(x, weight, bias, y, features=features)
        else:
            outer_products(x, weight, bias, y, tile=tile_shape(features), valid=valid)
    return finished(builder)
