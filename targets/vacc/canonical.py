"""What patterns want the imported module to look like.

shape_to_tensor(shape_of(x))    ->  a constant: a static shape waits for no value
cos(concat(m, m)), sin(same)    ->  each with a product m of its own, so that each is one match
"""

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.vacc.relax_types import call_of, op_name, shape_of, tensor_type


@mutator
class _Canonical(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        match op_name(visited):
            case "relax.shape_to_tensor":
                return self._constant_shape(call_of(visited))
            case "relax.cos" | "relax.sin":
                turned = call_of(visited)
                return relax.Call(turned.op, [self._again(turned.args[0], depth=4)])
        return visited

    def _behind(self, value: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(value) if isinstance(value, relax.Var) else value

    def _constant_shape(self, call: relax.Call) -> relax.Expr:
        asked = self._behind(call.args[0])
        of = call_of(asked).args[0] if op_name(asked) == "relax.shape_of" else None
        if of is None or tensor_type(of) is None:
            return call
        return relax.const(np.array(shape_of(of), np.int64), "int64")

    def _again(self, value: relax.Expr, *, depth: int) -> relax.Expr:
        """The same computation, emitted anew as far as patterns look."""
        made = self._behind(value)
        if depth == 0 or op_name(made) not in ("relax.concat", "relax.multiply", "relax.astype"):
            return value
        call = call_of(made)
        parts = self._behind(call.args[0])
        if not isinstance(parts, relax.Tuple):
            arguments = [self._again(call.args[0], depth=depth - 1), *call.args[1:]]
            return self.builder_.emit(relax.Call(call.op, arguments, call.attrs))
        one, *others = parts.fields
        if len(others) != 1 or not others[0].same_as(one):
            return value
        again = self._again(one, depth=depth - 1)
        joined = relax.Call(call.op, [relax.Tuple([again, again])], call.attrs)
        return self.builder_.emit(joined)


def canonical(module: tvm.IRModule) -> tvm.IRModule:
    """`main` rewritten, constants folded, what is dead removed."""
    rewriting = _Canonical(module)
    main = module.get_global_var("main")
    rewriting.builder_.update_func(main, rewriting.visit_expr(module["main"]))
    module = rewriting.builder_.get()
    return tvm.transform.Sequential(
        [relax.transform.DeadCodeElimination(["main"]), relax.transform.FoldConstant()]
    )(module)
