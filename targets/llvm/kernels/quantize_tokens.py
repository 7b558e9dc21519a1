"""x -> int8 codes and one scale a row, as `int8_row` rounds."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.int8_row import round_row
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.parallel_loop import limit_argument, limited, parallel_or_serial


def quantize_tokens(
    rows: int, width: int, *, features: CpuFeatures, has_limit: bool = False
) -> PrimFunc:
    """Build the rounding for static shapes.

    Args:
        rows: Rows of x, each with a scale of its own.
        width: Columns of x.
        features: What the code may use.
        has_limit: Whether only the first `valid_length` rows are wanted.

    Returns:
        A scheduled function of x [rows, width] fp32, (valid_length [1] int64,)
        codes [rows, width] int8, scales [rows] fp32.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("quantize_tokens")
        x = T.arg("x", T.buffer((rows, width), "float32"))
        valid = limit_argument(has_limit)
        codes = T.arg("codes", T.buffer((rows, width), "int8"))
        scales = T.arg("scales", T.buffer((rows,), "float32"))
        # RewriteDataflowReshape looks for a block in every function of one input.
        with (
            T.sblock("root"),
            parallel_or_serial(limited(rows, valid), elements=rows * width) as row,
        ):
            scale = round_row(x, (row,), codes, (row,), lanes=features.lanes)
            T.buffer_store(scales, scale, [row])
    return finished(builder)
