"""Gathers are made safe: TVM's importer asks for the mode that reads wherever an index points."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.op.op_attrs import TakeAttrs


@mutator
class _Clamping(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if not isinstance(visited, relax.Call) or not isinstance(visited.attrs, TakeAttrs):
            return visited
        if visited.attrs.mode == "clip":
            return visited
        return relax.op.take(*visited.args, axis=visited.attrs.axis, mode="clip")


def clamp_gathers(module: tvm.IRModule) -> tvm.IRModule:
    """`main` with every `take` clamping its indices to the axis, so that none leaves the buffer."""
    clamping = _Clamping(module)
    main = module.get_global_var("main")
    clamping.builder_.update_func(main, clamping.visit_expr(module["main"]))
    return clamping.builder_.get()
