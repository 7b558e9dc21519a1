"""Rotary position embedding: y = x * cos + turned(x) * sin, where turned(x) = (-x[h:], x[:h]).

RoFormer, https://arxiv.org/abs/2104.09864, with the halves of a head as Qwen pairs them.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.parallel_loop import limit_argument, limited, parallel_or_serial
from targets.llvm.kernels.vector_math import each_vector, load, splat, store


def rotary(
    tokens: int, heads: int, *, head_dim: int, features: CpuFeatures, has_limit: bool = False
) -> PrimFunc:
    """Build the embedding for static shapes.

    Args:
        tokens: Rows, each at a position of its own.
        heads: Heads of a row, turned alike.
        head_dim: Elements of a head, an even number.
        features: What the code may use.
        has_limit: Whether only the first `valid_length` rows are wanted.

    Returns:
        A scheduled function of x [tokens, heads, head_dim], cos and sin [tokens, head_dim],
        (valid_length [1] int64,) and y like x; floats are fp32.
    """
    half = head_dim // 2
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("rotary")
        x = T.arg("x", T.buffer((tokens, heads, head_dim), "float32"))
        cos, sin = (T.arg(name, T.buffer((tokens, head_dim), "float32")) for name in ("cos", "sin"))
        valid = limit_argument(has_limit)
        y = T.arg("y", T.buffer((tokens, heads, head_dim), "float32"))
        elements = tokens * heads * head_dim
        rows = parallel_or_serial(limited(tokens, valid), elements=elements)
        with rows as row, T.serial(heads) as head:

            def turn(d: Expr | int, lanes: int) -> None:
                first, second = (
                    T.Bind(load(x, (row, head, start + d), lanes)) for start in (0, half)
                )
                negated = splat(0.0, lanes) - second
                for start, straight, crossed in ((0, first, negated), (half, second, first)):
                    value = straight * load(cos, (row, start + d), lanes)
                    value = value + crossed * load(sin, (row, start + d), lanes)
                    store(y, (row, head, start + d), value, lanes=lanes)

            each_vector(half, features.lanes, turn)
    return finished(builder)
