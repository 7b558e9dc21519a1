"""What is asked of Relax values here: static shapes, dtypes, and what a variable is bound to."""

from collections.abc import Mapping

from tvm import relax, tirx
from tvm.ir import Op

# numpy's names -> the tile programs'.
TILE_DTYPES: Mapping[str, str] = {
    "float16": "f16",
    "float32": "f32",
    "int8": "i8",
    "int64": "i64",
}


def tensor_type(value: relax.Expr) -> relax.TensorType | None:
    """Its type, where it is a tensor of static shape."""
    found = value.ty
    if not isinstance(found, relax.TensorType) or not isinstance(found.shape, relax.ShapeExpr):
        return None
    return found if all(isinstance(axis, tirx.IntImm) for axis in found.shape.values) else None


def shape_of(value: relax.Expr) -> tuple[int, ...]:
    """Of a tensor of static shape."""
    found = tensor_type(value)
    assert found is not None, f"{value} is no tensor of static shape"
    assert isinstance(found.shape, relax.ShapeExpr), "`tensor_type` gives no other"
    return tuple(_integer(axis) for axis in found.shape.values)


def dtype_of(value: relax.Expr) -> str:
    """Of a tensor: `float32`."""
    found = tensor_type(value)
    return "" if found is None else str(found.dtype)


def op_name(value: relax.Expr | None) -> str:
    """`relax.matmul`; empty for what is no call of an operator."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, Op):
        return ""
    return str(getattr(value.op, "name", ""))


def call_of(value: relax.Expr | None) -> relax.Call:
    """What is known to be a call."""
    assert isinstance(value, relax.Call), f"{value} is no call"
    return value


def axes_of(value: relax.Expr) -> tuple[int, ...]:
    """The axes of a permute_dims; none where it reverses them all."""
    axes = getattr(call_of(value).attrs, "axes", None)
    return () if axes is None else tuple(int(axis) for axis in axes)


def axis_of(value: relax.Expr) -> int | None:
    """The axis of a take; None where it takes of the flat tensor."""
    axis = getattr(call_of(value).attrs, "axis", None)
    return None if axis is None else int(axis)


def integers(value: relax.Expr) -> tuple[int, ...]:
    """A tuple or a shape of constants, as operators take them."""
    assert isinstance(value, relax.ShapeExpr | relax.Tuple), f"{value} holds no integers"
    entries = value.values if isinstance(value, relax.ShapeExpr) else value.fields
    return tuple(_integer(entry) for entry in entries)


def bindings_of(function: relax.Function) -> list[relax.VarBinding]:
    """Every binding of a function, in order."""
    assert isinstance(function.body, relax.SeqExpr), "a function of a module is in blocks"
    found = [binding for block in function.body.blocks for binding in block.bindings]
    return [one for one in found if isinstance(one, relax.VarBinding)]


def result_of(function: relax.Function) -> relax.Expr:
    """What it returns."""
    assert isinstance(function.body, relax.SeqExpr), "a function of a module is in blocks"
    return function.body.body


def _integer(value: object) -> int:
    # A literal in a tuple is an IntImm, or is wrapped in a PrimValue.
    return int(getattr(value, "value", value))  # type: ignore[call-overload]


class Body:
    """A function of one block: what its variables are bound to.

    Attributes:
        params: In order.
        calls: Every bound call of an operator, in order.
        result: The variable that it returns.
    """

    def __init__(self, function: relax.Function) -> None:
        self.params = list(function.params)
        bindings = bindings_of(function)
        self._bound = {one.var: one.value for one in bindings}
        self.calls = [call_of(one.value) for one in bindings if op_name(one.value)]
        self.result = result_of(function)

    def behind(self, value: relax.Expr) -> relax.Expr:
        """What a variable stands for, through others that it is bound to."""
        while isinstance(value, relax.Var) and value in self._bound:
            value = self._bound[value]
        return value

    def find(self, name: str) -> relax.Call | None:
        """The first call of an operator."""
        return next((call for call in self.calls if op_name(call) == name), None)

    def param(self, value: relax.Expr, *through: str) -> int:
        """The number of the parameter behind a value and calls of the operators `through`."""
        value = self.behind(value)
        while op_name(value) in through:
            value = self.behind(call_of(value).args[0])
        assert isinstance(value, relax.Var), f"{value} is no parameter"
        return next(i for i, one in enumerate(self.params) if one.same_as(value))
