"""What a product in Relax reads: a stored weight behind its layout, int8 codes behind their scales.

permute_dims(W)                                                      floats, perhaps behind astype
permute_dims(dequantize(W, scale, axis 0))                           int8, a scale for each output
permute_dims(reshape(dequantize(reshape(W), reshape(scale), axis 0)))      and for each group
dequantize(codes[1, T, K], scales[T], axis 1)                        activations, one for each row
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TypeGuard

from tvm import relax
from tvm.ir import GenericConst, Op
from tvm.relax.op.op_attrs import QuantizeAttrs

from targets.llvm.kernel_calls import dtype_of, static_shape
from targets.llvm.kernels.packed_weight import packed_shape

_FLOATS = ("float32", "bfloat16", "float16")
# What a variable is bound to: None for a parameter.
Lookup = Callable[[relax.Var], relax.Expr | None]


@dataclass(frozen=True)
class StoredMatrix:
    """A parameter [out, in]; int8 has scales [out], or [out, in / group] with groups."""

    values: relax.Expr
    scale: relax.Expr | None = None
    group: int = 0


@dataclass(frozen=True)
class PackedOperand:
    """A packed parameter, [outputs, inputs] before it was; int8 has scales [outputs]."""

    values: relax.Expr
    outputs: int
    inputs: int
    scale: relax.Expr | None = None

    @property
    def dtype(self) -> str:
        """Of its elements."""
        return dtype_of(self.values)


@dataclass(frozen=True)
class Codes:
    """int8 activations [rows, K], or of more axes, and the scale of each row [rows]."""

    values: relax.Expr
    scales: relax.Expr


def is_call(value: relax.Expr | None, name: str) -> TypeGuard[relax.Call]:
    """Whether it is a call of `relax.<name>`."""
    return isinstance(value, relax.Call) and value.op == Op.get(f"relax.{name}")


class Operands:
    """The searches, upwards from what a product reads."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def weight(self, value: relax.Expr) -> StoredMatrix | None:
        """The stored matrix that a product reads turned."""
        turned = self._behind(value)
        if not is_call(turned, "permute_dims") or len(static_shape(turned.args[0])) != 2:
            return None
        wide = self._before_cast(turned.args[0])
        source = self._behind(wide)
        if is_call(source, "dequantize"):
            return self._by_channel(source)
        if is_call(source, "reshape"):
            return self._by_group(self._behind(source.args[0]), static_shape(source))
        return StoredMatrix(wide) if self._is_parameter(wide, *_FLOATS) else None

    def packed_weight(self, value: relax.Expr) -> PackedOperand | None:
        """The packed matrix that a product reads unpacked and turned."""
        turned = self._behind(value)
        if not is_call(turned, "permute_dims") or len(static_shape(turned.args[0])) != 2:
            return None
        wide = self._behind(turned.args[0])
        if is_call(wide, "astype") and dtype_of(wide) == "float32":
            found = self.unpacked(wide.args[0])
            return found if found is not None and found.dtype == "bfloat16" else None
        if not is_call(wide, "dequantize") or not _is_symmetric(wide, axis=0):
            return None
        found = self.unpacked(wide.args[0])
        return None if found is None else replace(found, scale=wide.args[1])

    def unpacked(self, value: relax.Expr) -> PackedOperand | None:
        """The packed parameter whose unpacked form this is."""
        outputs, inputs = static_shape(value) if len(static_shape(value)) == 2 else (0, 0)
        found = self._behind(value)
        if is_call(found, "strided_slice"):
            found = self._behind(found.args[0])
        if not is_call(found, "reshape"):
            return None
        turned = self._behind(found.args[0])
        if not is_call(turned, "permute_dims") or not outputs:
            return None
        parameter = turned.args[0]
        if not self._is_parameter(parameter, "int8", "bfloat16"):
            return None
        is_packed = static_shape(parameter) == packed_shape(outputs, inputs, dtype_of(parameter))
        return PackedOperand(parameter, outputs, inputs) if is_packed else None

    def before_rounding(self, value: relax.Expr) -> relax.Expr | None:
        """fp32 x, where the value is x rounded to bfloat16 and widened again."""
        wide = self._behind(value)
        if not is_call(wide, "astype") or dtype_of(wide) != "float32":
            return None
        narrow = self._behind(wide.args[0])
        if not is_call(narrow, "astype") or dtype_of(narrow) != "bfloat16":
            return None
        return narrow.args[0] if dtype_of(narrow.args[0]) == "float32" else None

    def codes(self, value: relax.Expr) -> Codes | None:
        """The int8 codes that a product reads widened, a scale for each of their rows."""
        wide = self._behind(value)
        if not is_call(wide, "dequantize"):
            return None
        codes, scales = wide.args[0], wide.args[1]
        shape = static_shape(codes)
        rows_axis = len(shape) - 2
        is_by_row = rows_axis >= 0 and prod(shape[:-1]) == shape[rows_axis]
        if not is_by_row or not _is_symmetric(wide, axis=rows_axis):
            return None
        laid_out = self._behind(codes)
        if is_call(laid_out, "reshape") and static_shape(laid_out.args[0]) == shape[-2:]:
            codes = laid_out.args[0]
        return Codes(codes, scales)

    def _behind(self, value: relax.Expr) -> relax.Expr | None:
        """What a variable stands for, and what that one does; None for a parameter."""
        while isinstance(value, relax.Var):
            found = self._lookup(value)
            if found is None:
                return None
            value = found
        return value

    def _before_cast(self, value: relax.Expr) -> relax.Expr:
        cast = self._behind(value)
        return cast.args[0] if is_call(cast, "astype") and dtype_of(cast) == "float32" else value

    def _is_parameter(self, value: relax.Expr, *dtypes: str) -> bool:
        is_bound = not isinstance(value, relax.Var) or self._behind(value) is not None
        return not is_bound and dtype_of(value) in dtypes

    def _by_channel(self, wide: relax.Call) -> StoredMatrix | None:
        values, scale = wide.args[0], wide.args[1]
        if not self._is_parameter(values, "int8") or not _is_symmetric(wide, axis=0):
            return None
        return StoredMatrix(values, scale)

    def _by_group(self, wide: relax.Expr | None, shape: tuple[int, ...]) -> StoredMatrix | None:
        """`wide` [out * groups, group] is laid out anew as `shape` [out, in]."""
        if not is_call(wide, "dequantize") or not _is_symmetric(wide, axis=0):
            return None
        cut, listed = (self._behind(operand) for operand in wide.args[:2])
        if not is_call(cut, "reshape") or not is_call(listed, "reshape"):
            return None
        values, scale, group = cut.args[0], listed.args[0], static_shape(cut)[-1]
        if not self._is_parameter(values, "int8") or static_shape(values) != shape:
            return None
        outputs, inputs = shape
        if len(static_shape(cut)) != 2 or inputs % group:
            return None
        if static_shape(scale) != (outputs, inputs // group):
            return None
        return StoredMatrix(values, scale, group)


def _is_symmetric(wide: relax.Call, *, axis: int) -> bool:
    """Whether it widens int8 to fp32 by fp32 scales along `axis`, without zero points."""
    values, scales, zero_points = wide.args
    assert isinstance(wide.attrs, QuantizeAttrs)
    shape = static_shape(values)
    if dtype_of(values) != "int8" or dtype_of(scales) != "float32" or dtype_of(wide) != "float32":
        return False
    if int(wide.attrs.axis) % len(shape) != axis or static_shape(scales) != (shape[axis],):
        return False
    if not isinstance(zero_points, GenericConst):
        return False
    # TVM fills `value` from C++.
    return not zero_points.value.numpy().any()  # pyright: ignore[reportAttributeAccessIssue]
