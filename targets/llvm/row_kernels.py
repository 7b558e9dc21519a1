"""Kernels over the rows of a window, in the forms that follow from the whole graph.

    rms_norm(x, w), where x is a sum a + b      ->  add_rms_norm(a, b, w) -> (x, y)
    silu_mul(gate, up), both of one packed_linear  ->  gated_linear(x, gate's weight, up's)
    any of them, over the rows of a window      ->  the same with `valid_length`: it ends there

A converter sees one node, and asks for the plain form; what stands around it is known when all of
the graph is there.
"""

from collections.abc import Callable, Mapping

import tvm
from tvm import relax
from tvm.ir import GlobalVar, Op, TupleType
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.tirx import PrimFunc

from targets.llvm.features import CpuFeatures
from targets.llvm.function_bindings import Bindings, only_main
from targets.llvm.kernel_calls import add_kernel, dtype_of, static_shape, tensor_type
from targets.llvm.row_limit import row_limit
from targets.llvm.stored_operands import is_call

_NORM, _ACTIVATION, _PRODUCT = "rms_norm", "silu_mul", "packed_linear"


# Builds one kernel: plain, or with `has_limit`; of a norm `has_addend`; of a product `is_gated`.
KernelForm = Callable[..., PrimFunc]


class RowKernels:
    """The kernels over rows that a module calls, and how to build their other forms.

    Attributes:
        features: What their code may use.
    """

    def __init__(self, features: CpuFeatures) -> None:
        self.features = features
        self._forms: dict[str, tuple[str, KernelForm]] = {}

    def add(self, builder: relax.BlockBuilder, build: KernelForm, name: str) -> GlobalVar:
        """Add the plain form to the module; an equal kernel that is there already is shared."""
        kernel = add_kernel(builder, build(), name)
        self._forms[kernel.name_hint] = name, build
        return kernel

    @property
    def forms(self) -> Mapping[str, tuple[str, KernelForm]]:
        """A kernel's name in the module -> what it is called, and how to build it."""
        return self._forms


def _called(value: relax.Expr | None) -> str | None:
    """The name of the kernel that a call_tir calls."""
    if not is_call(value, "call_tir"):
        return None
    kernel = value.args[0]
    assert isinstance(kernel, GlobalVar)
    return kernel.name_hint


def _arguments(call: relax.Call) -> list[relax.Expr]:
    fields = call.args[1]
    assert isinstance(fields, relax.Tuple)
    return list(fields.fields)


def _results(call: relax.Call) -> int:
    """How many tensors a kernel leaves."""
    if not isinstance(call.ty, TupleType):
        return 1
    # TVM fills `fields` from C++.
    return len(call.ty.fields)  # pyright: ignore[reportAttributeAccessIssue]


def _sums_before_norms(bindings: Bindings, kernels: RowKernels) -> dict[relax.Expr, relax.Call]:
    """The addition of two tensors of one shape -> the norm of it."""
    found: dict[relax.Expr, relax.Call] = {}
    for _, value in bindings:
        name, _ = kernels.forms.get(_called(value) or "", ("", None))
        if name != _NORM:
            continue
        assert isinstance(value, relax.Call)
        rows = bindings.behind(_arguments(value)[0])
        total = bindings.behind(rows.args[0]) if is_call(rows, "reshape") else rows
        if not is_call(total, "add") or dtype_of(total) != "float32":
            continue
        if static_shape(total.args[0]) == static_shape(total.args[1]) == static_shape(total):
            found.setdefault(total, value)
    return found


def _gated_products(bindings: Bindings, kernels: RowKernels) -> dict[relax.Expr, relax.Call]:
    """An activation -> the call whose two results are its gate and its up, read by it alone."""
    found: dict[relax.Expr, relax.Call] = {}
    for _, value in bindings:
        name, _ = kernels.forms.get(_called(value) or "", ("", None))
        if name != _ACTIVATION:
            continue
        assert isinstance(value, relax.Call)
        gate, up = (_only_read(bindings, one) for one in _arguments(value))
        if not isinstance(gate, relax.TupleGetItem) or not isinstance(up, relax.TupleGetItem):
            continue
        product = bindings.behind(gate.tuple_value)
        name, _ = kernels.forms.get(_called(product) or "", ("", None))
        is_pair = name == _PRODUCT and (gate.index, up.index) == (0, 1)
        if is_pair and up.tuple_value.same_as(gate.tuple_value):
            assert isinstance(product, relax.Call)
            if _results(product) == 2:
                found[value] = product
    return found


def _only_read(bindings: Bindings, value: relax.Expr) -> relax.Expr | None:
    """What is behind reshapes and other names, where each of them is read once."""
    while isinstance(value, relax.Var):
        if bindings.only_reader(value) is None:
            return None
        behind = bindings.value(value)
        if behind is None:
            return None
        value = behind.args[0] if is_call(behind, "reshape") else behind
    return value


@mutator
class _Forms(PyExprMutator):
    def __init__(self, module: tvm.IRModule, kernels: RowKernels) -> None:
        super().__init__(module)
        self.kernels = kernels
        main = only_main(module)
        self.limit = row_limit(main)
        bindings = Bindings(main)
        self.norms = _sums_before_norms(bindings, kernels)
        self.gated = _gated_products(bindings, kernels)
        # A norm of a sum -> its result, once the sum was emitted.
        self.normed: dict[relax.Expr, relax.Expr] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if call in self.normed:
            return self.normed[call]
        if call in self.norms:
            return self._add_and_norm(call, self.norms[call])
        if call in self.gated:
            return self._gate(call, self.gated[call])
        visited = super().visit_call_(call)
        name, build = self.kernels.forms.get(_called(visited) or "", ("", None))
        if build is None or not isinstance(visited, relax.Call):
            return visited
        arguments = _arguments(visited)
        limit = self.limit.of(static_shape(arguments[0])[0])
        if not limit:
            return visited
        kernel = add_kernel(self.builder_, build(has_limit=True), name)
        return relax.Call(
            Op.get("relax.call_tir"),
            [kernel, relax.Tuple([*arguments, *limit])],
            visited.attrs,
            visited.ty_args,
        )

    def _gate(self, activation: relax.Call, product: relax.Call) -> relax.Expr:
        kernel = product.args[0]
        assert isinstance(kernel, GlobalVar)
        _, build = self.kernels.forms[kernel.name_hint]
        result = tensor_type(activation)
        arguments = [self.visit_expr(one) for one in _arguments(product)]
        limit = self.limit.of(static_shape(activation)[0])
        joined = build(is_gated=True, has_limit=bool(limit))
        name = add_kernel(self.builder_, joined, "gated_linear")
        return relax.call_tir(name, [*arguments, *limit], out_ty=result)

    def _add_and_norm(self, total: relax.Call, norm: relax.Call) -> relax.Expr:
        kernel = norm.args[0]
        assert isinstance(kernel, GlobalVar)
        name, build = self.kernels.forms[kernel.name_hint]
        rows, weight = _arguments(norm)
        shape = static_shape(rows)
        flat = [
            self.builder_.emit(relax.op.reshape(self.visit_expr(one), shape)) for one in total.args
        ]
        limit = self.limit.of(shape[0])
        joined = build(has_addend=True, has_limit=bool(limit))
        result = tensor_type(norm)
        both = self.builder_.emit(
            relax.call_tir(
                add_kernel(self.builder_, joined, f"add_{name}"),
                [*flat, weight, *limit],
                out_ty=[result, result],
            )
        )
        sums, normed = (self.builder_.emit(relax.TupleGetItem(both, i)) for i in range(2))
        self.normed[norm] = normed
        return relax.op.reshape(sums, static_shape(total))


def choose_forms(module: tvm.IRModule, kernels: RowKernels) -> tvm.IRModule:
    """Rewrite `main`; what became dead is removed later by DeadCodeElimination."""
    choosing = _Forms(module, kernels)
    main = module.get_global_var("main")
    choosing.builder_.update_func(main, choosing.visit_expr(module["main"]))
    return choosing.builder_.get()
