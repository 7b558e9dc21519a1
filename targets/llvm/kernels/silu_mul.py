"""y = gate * sigmoid(gate) * up, the gated activation of Qwen's MLP (https://arxiv.org/abs/2002.05202)."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.parallel_loop import limit_argument, limited, parallel_or_serial
from targets.llvm.kernels.vector_math import each_vector, exp, load, splat, store


def silu_mul(rows: int, width: int, *, features: CpuFeatures, has_limit: bool = False) -> PrimFunc:
    """Build the activation for static shapes.

    Args:
        rows: Rows of all three matrices.
        width: Columns of all three.
        features: What the code may use.
        has_limit: Whether only the first `valid_length` rows are wanted.

    Returns:
        A scheduled function of gate and up, (valid_length [1] int64,) and y; the matrices are
        [rows, width] fp32.
    """
    lanes = features.lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("silu_mul")
        gate, up = (T.arg(name, T.buffer((rows, width), "float32")) for name in ("gate", "up"))
        valid = limit_argument(has_limit)
        y = T.arg("y", T.buffer((rows, width), "float32"))

        def activate(row: Expr, k: Expr | int, count: int) -> None:
            at = (row, k)
            value = silu(T.Bind(load(gate, at, count)), count)
            store(y, at, value * load(up, at, count), lanes=count)

        # One row is cut into pieces for the threads; of many, each is a piece.
        pieces = 8 if rows == 1 and width % (8 * lanes) == 0 else 1
        length = width // pieces
        tasks = limited(rows, valid) if pieces == 1 else pieces
        with parallel_or_serial(tasks, elements=rows * width) as task:
            row, start = task // pieces, task % pieces * length
            each_vector(length, lanes, lambda k, count: activate(row, start + k, count))
    return finished(builder)


def silu(gate: Expr, lanes: int) -> Expr:
    """Emit gate * sigmoid(gate) by exp(-|gate|), which cannot overflow."""
    decay = exp(T.Bind(T.min(gate, splat(0.0, lanes) - gate)), lanes)
    one = splat(1.0, lanes)
    sigmoid = T.Select(gate >= splat(0.0, lanes), one, decay) / (one + decay)
    return T.Bind(gate * sigmoid)
