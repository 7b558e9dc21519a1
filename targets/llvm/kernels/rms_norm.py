"""y = x / sqrt(mean(x * x) + epsilon) * weight, row by row, in fp32; x may be a sum.

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
from targets.llvm.kernels.parallel_loop import limit_argument, limited, parallel_or_serial
from targets.llvm.kernels.vector_math import (
    assign,
    chunks,
    each_vector,
    horizontal_sums,
    load,
    register,
    splat,
    store,
    value_of,
)


def rms_norm(
    rows: int,
    hidden: int,
    *,
    epsilon: float,
    features: CpuFeatures,
    has_addend: bool = False,
    has_limit: bool = False,
) -> PrimFunc:
    """Build the norm for static shapes.

    Args:
        rows: Rows of x, normalized each on its own.
        hidden: Columns of x.
        epsilon: Added to the mean of squares.
        features: What the code may use.
        has_addend: Whether x is a sum, which is a result of its own.
        has_limit: Whether only the first `valid_length` rows are wanted.

    Returns:
        A scheduled function of x [rows, hidden], (addend [rows, hidden],) weight [hidden],
        (valid_length [1] int64,) (total [rows, hidden], x + addend,) y [rows, hidden]; floats are
        fp32.
    """
    lanes = features.lanes
    matrix = ((rows, hidden), "float32")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("add_rms_norm" if has_addend else "rms_norm")
        x = T.arg("x", T.buffer(*matrix))
        addend = T.arg("addend", T.buffer(*matrix)) if has_addend else None
        weight = T.arg("weight", T.buffer((hidden,), "float32"))
        valid = limit_argument(has_limit)
        total = T.arg("total", T.buffer(*matrix)) if has_addend else x
        y = T.arg("y", T.buffer(*matrix))
        with parallel_or_serial(limited(rows, valid), elements=rows * hidden) as row:
            if addend is not None:
                _add(x, addend, total, row, lanes=lanes)
            mean = _sum_of_squares(total, row, lanes=lanes) * splat(1.0 / hidden, 1)
            factor = T.Bind(splat(1.0, 1) / T.sqrt(mean + splat(epsilon, 1)))

            def normalize(k: Expr | int, width: int) -> None:
                scaled = load(total, (row, k), width) * splat(factor, width)
                store(y, (row, k), scaled * load(weight, (k,), width), lanes=width)

            each_vector(hidden, lanes, normalize)
    return finished(builder)


def _add(x: Buffer, addend: Buffer, total: Buffer, row: Expr, *, lanes: int) -> None:
    def add(k: Expr | int, width: int) -> None:
        value = load(x, (row, k), width) + load(addend, (row, k), width)
        store(total, (row, k), value, lanes=width)

    each_vector(int(x.shape[1]), lanes, add)


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
