"""What a lowered module keeps in memory: is there a float copy of a weight?"""

from dataclasses import dataclass
from math import prod

import tvm
import tvm_ffi
from tvm import relax, tirx


@dataclass(frozen=True)
class Resident:
    """One tensor or buffer."""

    function: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Its length."""
        return prod(self.shape)


def residents(module: tvm.IRModule) -> set[Resident]:
    """Every tensor of its Relax functions, and every buffer of its kernels, of known shape."""
    found: set[Resident] = set()
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            found |= _buffers(name.name_hint, function)
        elif isinstance(function, relax.Function):
            found |= _tensors(name.name_hint, function)
    return found


def _buffers(name: str, function: tirx.PrimFunc) -> set[Resident]:
    """A buffer is a variable whose type says so."""
    found: set[Resident] = set()

    def visit(variable: tirx.Var) -> None:
        if isinstance(variable.ty, tirx.BufferType):
            found.add(_of(name, variable.ty.dtype, variable.ty.shape))

    tvm_ffi.structural_walk(function, (tirx.Var, visit))
    return found


def _tensors(name: str, function: relax.Function) -> set[Resident]:
    found: set[Resident] = set()

    def visit(node: relax.Expr) -> None:
        kind = getattr(node, "ty", None)
        if isinstance(kind, relax.TensorType) and isinstance(kind.shape, relax.ShapeExpr):
            found.add(_of(name, kind.dtype, kind.shape.values))

    relax.analysis.post_order_visit(function, visit)
    return found


def _of(function: str, dtype: object, shape: object) -> Resident:
    extents = tuple(int(axis) for axis in shape)  # type: ignore[attr-defined]
    return Resident(function, str(dtype), extents)


def float_copies(module: tvm.IRModule, elements: int) -> list[Resident]:
    """What is no int8 and as large as a matrix of so many elements."""
    large = [one for one in residents(module) if one.dtype != "int8" and one.elements >= elements]
    return sorted(large, key=lambda one: (one.function, one.dtype, one.shape))
