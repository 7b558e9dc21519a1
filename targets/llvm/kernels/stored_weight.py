"""A linear's weight [outputs, inputs] as it lies in memory: floats, or int8 with scales."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.vector_math import load, splat

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a kernel under construction; nothing of it is ever widened in memory.

    Attributes:
        values: [outputs, inputs].
        scale: fp32 [outputs], or [outputs, inputs / group] with groups; None where `values` are
            floats.
        group: Inputs that share a scale; 0: all of an output's.
    """

    values: Buffer
    scale: Buffer | None = None
    group: int = 0

    @property
    def outputs(self) -> int:
        """Rows."""
        return int(self.values.shape[0])

    @property
    def inputs(self) -> int:
        """Columns."""
        return int(self.values.shape[1])

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return _BYTES[str(self.values.dtype)]

    def width(self, lanes: int) -> int:
        """Lanes of a vector along inputs that has one scale: `lanes`, or what divides a group."""
        return min(lanes, self.group & -self.group) if self.group else lanes

    def row(self, first: Expr, n: int, columns: int) -> Expr:
        """Row `first + n` of a block of `columns`; past the end it is the last one."""
        return T.min(first + n, self.outputs - 1) if self.outputs % columns else first + n

    def raw(self, row: Expr, k: Expr | int, lanes: int) -> Expr:
        """`lanes` elements in fp32, not yet scaled."""
        return load(self.values, (row, k), lanes)

    def scaled(self, row: Expr, k: Expr | int, lanes: int) -> Expr:
        """`lanes` elements of one group in fp32, scaled: what DequantizeLinear gives."""
        if self.scale is None:
            return self.raw(row, k, lanes)
        at = (row, T.floordiv(k, self.group)) if self.group else (row,)
        return self.raw(row, k, lanes) * splat(self.scale[at], lanes)


def weight_arguments(outputs: int, inputs: int, *, dtype: str, group: int = 0) -> StoredWeight:
    """Declare the arguments `weight` and, for int8, `scale` of the function under construction."""
    values = T.arg("weight", T.buffer((index(outputs), index(inputs)), dtype))
    if dtype != "int8":
        return StoredWeight(values)
    assert group == 0 or inputs % group == 0, f"groups of {group} in {inputs} inputs"
    shape = (outputs, inputs // group) if group else (outputs,)
    return StoredWeight(values, T.arg("scale", T.buffer(shape, "float32")), group)


def index(extent: int) -> Expr:
    """A loop's extent whose variable is 64-bit: a weight may hold over 2^31 elements."""
    return tirx.const(extent, "int64")
