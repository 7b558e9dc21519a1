"""TVM annotates a tensor's shape as a list of expressions; it takes integers and tuples too."""

from collections.abc import Sequence

from tvm.ir import Expr, PrimType, Type

class AnyType(Type): ...

ObjectType = AnyType

class FuncType(Type): ...

class ShapeType(Type):
    ndim: int
    def __init__(self, values: Sequence[Expr] | None = None, ndim: int = -1) -> None: ...

class TensorType(Type):
    shape: Expr | None
    dtype: PrimType
    ndim: int
    def __init__(
        self,
        shape: Expr | Sequence[int | Expr] | None = None,
        dtype: str | PrimType | None = "float32",
        ndim: int = -1,
    ) -> None: ...
