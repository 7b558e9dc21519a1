"""Kernels enter a Relax module here, marked so that TVM's fusion leaves them whole."""

from tvm import relax, tirx
from tvm.ir import GlobalVar

# kOpaque of TVM's OpPatternKind: never fused with a neighbour.
_OPAQUE = 8


def add_kernel(builder: relax.BlockBuilder, kernel: tirx.PrimFunc, name: str) -> GlobalVar:
    """The kernel's name in the module; an equal kernel that is there already is shared."""
    return builder.add_func(kernel.with_attr("op_pattern", _OPAQUE), name)


def static_shape(value: relax.Expr) -> tuple[int, ...]:
    """The shape of a tensor value; every axis is known on this target."""
    return tuple(int(axis) for axis in value.ty.shape.values)
