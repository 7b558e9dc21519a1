"""After code generation: partitions write caches in place, and give the rest anew.

   call_dps_packed("vacc_decode_0", (.., cache), (logits, cache'))
-> call_inplace_packed("vacc_decode_0", .., cache, inplace_indices=[-1, index of cache])
"""

from collections.abc import Mapping, Sequence

import tvm
from tvm import relax
from tvm.ir import TupleType
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.vacc.relax_types import call_of, op_name


@mutator
class _InPlace(PyExprMutator):
    def __init__(self, module: tvm.IRModule, states: Mapping[str, Sequence[int]]) -> None:
        super().__init__(module)
        self.states = states

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if op_name(visited) != "relax.call_dps_packed":
            return visited
        function, given = call_of(visited).args
        assert isinstance(function, relax.ExternFunc), "a packed function is called by its name"
        assert isinstance(given, relax.Tuple), "its arguments are a tuple"
        name = str(function.global_symbol)
        if name not in self.states:
            return visited
        indices, arguments = list(self.states[name]), list(given.fields)
        (result,) = call_of(visited).ty_args
        if all(index < 0 for index in indices):
            return relax.op.call_pure_packed(name, *arguments, ty_args=result)
        # TVM's stub of a tuple's type lacks its fields.
        types = list(getattr(result, "fields")) if isinstance(result, TupleType) else [result]  # noqa: B009
        return relax.op.call_inplace_packed(
            name, *arguments, inplace_indices=indices, ty_args=types
        )


def in_place(module: tvm.IRModule, states: Mapping[str, Sequence[int]]) -> tvm.IRModule:
    """Rewrite the calls of partitions in `main`.

    Args:
        module: After RunCodegen.
        states: Partition -> for each result the argument that it is, or -1.
    """
    rewriting = _InPlace(module, states)
    main = module.get_global_var("main")
    rewriting.builder_.update_func(main, rewriting.visit_expr(module["main"]))
    return rewriting.builder_.get()
