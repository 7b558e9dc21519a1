"""What patterns want the imported module to look like.

shape_to_tensor(shape_of(x))    ->  a constant: a static shape waits for no value
cos(concat(m, m)), sin(same)    ->  each with a product m of its own, so that each is one match
split(x, [a, b], -1)[1]         ->  strided_slice(x, -1, a, b): a part is a move, a tuple is not
(a, b)[1]                       ->  b
"""

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.vacc.relax_types import call_of, op_name, shape_of, tensor_type


@mutator
class _Static(PyExprMutator):
    """What static shapes decide."""

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if op_name(visited) != "relax.shape_to_tensor":
            return visited
        asked = _behind(self, call_of(visited).args[0])
        of = call_of(asked).args[0] if op_name(asked) == "relax.shape_of" else None
        if of is None or tensor_type(of) is None:
            return visited
        return relax.const(np.array(shape_of(of), np.int64), "int64")

    def visit_tuple_getitem_(self, op: relax.TupleGetItem) -> relax.Expr:
        visited = super().visit_tuple_getitem_(op)  # type: ignore[misc]  # TVM's stub lacks it
        assert isinstance(visited, relax.TupleGetItem), f"{visited} takes of no tuple"
        made = _behind(self, visited.tuple_value)
        if isinstance(made, relax.Tuple):
            return made.fields[visited.index]
        return visited if op_name(made) != "relax.split" else _part(call_of(made), visited.index)


@mutator
class _Separate(PyExprMutator):
    """Cosines and sines that share no product."""

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if op_name(visited) not in ("relax.cos", "relax.sin"):
            return visited
        turned = call_of(visited)
        return relax.Call(turned.op, [self._again(turned.args[0], depth=4)])

    def _again(self, value: relax.Expr, *, depth: int) -> relax.Expr:
        """The same computation, emitted anew as far as patterns look."""
        made = _behind(self, value)
        if depth == 0 or op_name(made) not in ("relax.concat", "relax.multiply", "relax.astype"):
            return value
        call = call_of(made)
        parts = _behind(self, call.args[0])
        if not isinstance(parts, relax.Tuple):
            arguments = [self._again(call.args[0], depth=depth - 1), *call.args[1:]]
            return self.builder_.emit(relax.Call(call.op, arguments, call.attrs))
        one, *others = parts.fields
        if len(others) != 1 or not others[0].same_as(one):
            return value
        again = self._again(one, depth=depth - 1)
        joined = relax.Call(call.op, [relax.Tuple([again, again])], call.attrs)
        return self.builder_.emit(joined)


def _behind(rewriting: PyExprMutator, value: relax.Expr) -> relax.Expr | None:
    return rewriting.lookup_binding(value) if isinstance(value, relax.Var) else value


def _part(split: relax.Call, index: int) -> relax.Expr:
    """One part of a split, whose shapes are known."""
    axis = int(getattr(split.attrs, "axis"))  # noqa: B009 - TVM's stubs lack both
    widths = [int(part.shape.values[axis]) for part in getattr(split.ty, "fields")]  # noqa: B009
    start = sum(widths[:index])
    bounds = [axis], [start], [start + widths[index]], [1]
    return relax.op.strided_slice(split.args[0], *bounds)  # type: ignore[arg-type]  # as above


def _rewritten(module: tvm.IRModule, rewriting: PyExprMutator) -> tvm.IRModule:
    main = module.get_global_var("main")
    rewriting.builder_.update_func(main, rewriting.visit_expr(module["main"]))
    return rewriting.builder_.get()


def canonical(module: tvm.IRModule) -> tvm.IRModule:
    """`main` rewritten, constants folded, what is computed twice once, what is dead removed."""
    module = tvm.transform.Sequential(
        [relax.transform.FoldConstant(), relax.transform.EliminateCommonSubexpr()]
    )(_rewritten(module, _Static(module)))
    return relax.transform.DeadCodeElimination(["main"])(_rewritten(module, _Separate(module)))
