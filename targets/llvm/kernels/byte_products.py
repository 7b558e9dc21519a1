"""Sums of products of int8 codes in int32 lanes: by VNNI where there is one, else by plain code.

VNNI (`vpdpbusd`) multiplies four unsigned bytes of a lane by four signed ones and adds them to the
lane. The left codes are made unsigned by adding 128, which adds 128 times the sum of the right
codes to the result: `excess` of the right codes is that. Sums are exact: int32 wraps, and what
fits it comes out whole.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.vector_math import assign, slice_of, splat, typed, value_of

# More products of two codes could leave int32.
EXACT_INPUTS = (2**31 - 1) // 127**2
_OFFSET = 128


@dataclass(frozen=True)
class ByteProducts:
    """One way to multiply.

    Attributes:
        lanes: int32 sums of a vector.
        depth: Codes of each operand that one lane takes at a time.
        intrinsic: LLVM's name of the instruction; empty for plain code.
    """

    lanes: int
    depth: int = 1
    intrinsic: str = ""

    @property
    def step(self) -> int:
        """Codes of a vector."""
        return self.lanes * self.depth

    @property
    def left_dtype(self) -> str:
        """Of the codes that are the left operand, as they are kept in panels."""
        return "uint8" if self.intrinsic else "int8"

    def units(self, codes: Buffer, indices: tuple[Expr | int, ...]) -> Expr:
        """Codes from a row, `depth` in each int32 lane."""
        vector = codes[(*indices[:-1], slice_of(indices[-1], self.step))]
        units = typed("int32", self.lanes)
        return T.reinterpret(units, vector) if self.intrinsic else T.cast(vector, units)

    def left(self, units: Expr) -> Expr:
        """Units as the left operand's bytes."""
        if not self.intrinsic:
            return T.cast(units, typed("int8", self.lanes))
        offset = tirx.const(0x80808080 - (1 << 32), "int32")
        return T.reinterpret(typed("uint8", self.step), units ^ splat(offset, self.lanes))

    def left_code(self, code: Expr) -> Expr:
        """One code as the left operand's byte."""
        if not self.intrinsic:
            return code
        return T.cast(T.cast(code, "int32") + _OFFSET, "uint8")

    def ones(self) -> Expr:
        """A left operand that adds up the right one."""
        return tirx.Broadcast(tirx.const(1, self.left_dtype), self.step)

    def repeated(self, codes: Buffer, indices: tuple[Expr | int, ...]) -> Expr:
        """`depth` codes in every lane, as the right operand's bytes."""
        if not self.intrinsic:
            return tirx.Broadcast(codes[indices], self.lanes)
        four = codes[(*indices[:-1], slice_of(indices[-1], self.depth))]
        unit = tirx.Broadcast(T.reinterpret("int32", four), self.lanes)
        return T.reinterpret(typed("int8", self.step), unit)

    def add(self, sums: Buffer, left: Expr, right: Expr) -> None:
        """Emit sums += left * right, lane by lane."""
        lanes = typed("int32", self.lanes)
        if self.intrinsic:
            total = T.call_llvm_pure_intrin(
                self.intrinsic, value_of(sums), left, right, dtype=lanes
            )
        else:
            total = value_of(sums) + T.cast(left, lanes) * T.cast(right, lanes)
        assign(sums, total)

    def excess(self, sums: Expr, lanes: int) -> Expr:
        """What right codes whose sums these are add to a product beyond the codes' own."""
        return sums * splat(tirx.const(_OFFSET if self.intrinsic else 0, "int32"), lanes)


def byte_products(features: CpuFeatures) -> ByteProducts:
    """The widest that these features have."""
    if {"avx512f", "avx512_vnni"} <= set(features.flags):
        return ByteProducts(16, 4, "llvm.x86.avx512.vpdpbusd.512")
    if {"avx2", "avx_vnni"} <= set(features.flags):
        return ByteProducts(8, 4, "llvm.x86.avx512.vpdpbusd.256")
    return ByteProducts(features.lanes)
