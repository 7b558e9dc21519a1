"""Kernels enter a Relax module here, marked so that TVM's fusion leaves them whole."""

from tvm import relax, tirx
from tvm.ir import GlobalVar

# kOpaque of TVM's OpPatternKind: never fused with a neighbour.
_OPAQUE = 8


def add_kernel(builder: relax.BlockBuilder, kernel: tirx.PrimFunc, name: str) -> GlobalVar:
    """The kernel's name in the module; an equal kernel that is there already is shared."""
    return builder.add_func(kernel.with_attr("op_pattern", _OPAQUE), name)


def tensor_type(value: relax.Expr) -> relax.TensorType:
    """The type of a tensor value."""
    assert isinstance(value.ty, relax.TensorType), f"{value} is no tensor"
    return value.ty


def dtype_of(value: relax.Expr) -> str:
    """The element type of a tensor value: `float32`."""
    return str(tensor_type(value).dtype)


def static_shape(value: relax.Expr) -> tuple[int, ...]:
    """The shape of a tensor value; every axis is known on this target."""
    shape = tensor_type(value).shape
    assert isinstance(shape, relax.ShapeExpr), f"the shape of {value} is not static"
    return tuple(_length(axis) for axis in shape.values)


def _length(axis: relax.Expr) -> int:
    assert isinstance(axis, tirx.IntImm), f"the length {axis} is not static"
    return int(axis.value)
