"""TVM annotates shapes as 1-tuples; it takes any sequence of lengths."""

from collections.abc import Sequence

from tvm.ir import Expr

def permute_dims(x: Expr, axes: Sequence[int] | None = None) -> Expr: ...
def reshape(x: Expr, shape: Sequence[int | Expr] | Expr) -> Expr: ...
