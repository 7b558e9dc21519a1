"""The part of TVM's visitors that is used here: a parameter's name is its override's own choice."""

from typing import Any, TypeVar

from tvm.ir import Call, Expr, IRModule
from tvm.relax import BlockBuilder, Var

_Class = TypeVar("_Class", bound=type)

def mutator(mutator_cls: _Class) -> _Class: ...

class PyExprMutator:
    builder_: BlockBuilder
    def __init__(self, mod: IRModule | None = None) -> None: ...
    # A function for a function, an expression for any other.
    def visit_expr(self, expr: Expr, /) -> Any: ...
    def visit_call_(self, op: Call, /) -> Expr: ...
    def lookup_binding(self, var: Var) -> Expr | None: ...
