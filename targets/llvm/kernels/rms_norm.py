"""y = x / sqrt(mean(x * x) + epsilon) * weight, row by row, in fp32.

Root mean square layer normalization: https://arxiv.org/abs/1910.07467.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.parallel_loop import parallel_or_serial
from targets.llvm.kernels.vector_math import (
    assign,
    chunks,
    horizontal_sums,
    load,
    register,
    splat,
    store,
    value_of,
)


def rms_norm(rows: int, hidden: int, *, epsilon: float, features: CpuFeatures) -> PrimFunc:
    """Build the norm for static shapes.

    Args:
        rows: Rows of x, normalized each on its own.
        hidden: Columns of x.
        epsilon: Added to the mean of squares.
        features: What the code may use.

    Returns:
        A scheduled function of x [rows, hidden], weight [hidden], y [rows, hidden], all fp32.
    """
    lanes = features.lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("rms_norm")
        x = T.arg("x", T.buffer((rows, hidden), "float32"))
        weight = T.arg("weight", T.buffer((hidden,), "float32"))
        y = T.arg("y", T.buffer((rows, hidden), "float32"))
        with parallel_or_serial(rows, elements=rows * hidden) as row:
            mean = _sum_of_squares(x, row, lanes=lanes) * splat(1.0 / hidden, 1)
            factor = T.Bind(splat(1.0, 1) / T.sqrt(mean + splat(epsilon, 1)))

            def normalize(k: Expr | int, width: int) -> None:
                scaled = load(x, (row, k), width) * splat(factor, width)
                store(y, (row, k), scaled * load(weight, (k,), width), lanes=width)

            whole = hidden - hidden % lanes
            with T.serial(whole // lanes) as step:
                normalize(step * lanes, lanes)
            for k, width in chunks(hidden - whole, lanes):
                normalize(whole + k, width)
    return finished(builder)


def _sum_of_squares(x: Buffer, row: Expr, *, lanes: int) -> Expr:
    hidden = int(x.shape[1])
    # Four sums hide the latency of the addition.
    streams = 4
    stride = streams * lanes
    sums = [register(lanes) for _ in range(streams)]
    with T.serial(hidden // stride) as step:
        for i, total in enumerate(sums):
            value = T.Bind(load(x, (row, step * stride + i * lanes), lanes))
            assign(total, value_of(total) + value * value)
    lanes_sum = T.Bind(
        (value_of(sums[0]) + value_of(sums[1])) + (value_of(sums[2]) + value_of(sums[3]))
    )
    result = T.Bind(horizontal_sums([lanes_sum], lanes))
    done = hidden - hidden % stride
    for k, width in chunks(hidden - done, lanes):
        value = T.Bind(load(x, (row, done + k), width))
        square = T.Bind(value * value)
        result = T.Bind(result + (square if width == 1 else horizontal_sums([square], width)))
    return result
