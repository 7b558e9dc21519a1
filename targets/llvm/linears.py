"""Linears become calls to the product kernel, before anything is legalized.

    matmul(x, permute_dims(astype(W[out, in]))) (+ bias)  ->  call_tir(linear, [x, W, bias])

The weight stays in its storage dtype; the kernel widens it in registers. A product that is no
linear (no parameter, or not transposed) is left to TVM.
"""

from collections.abc import Sequence
from math import prod
from typing import TypeGuard

import tvm
from tvm import relax
from tvm.ir import Op
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.llvm.features import CpuFeatures
from targets.llvm.kernel_calls import add_kernel, dtype_of, static_shape
from targets.llvm.kernels.linear import linear

_STORED = ("float32", "bfloat16", "float16")


def _is_call(value: relax.Expr | None, name: str) -> TypeGuard[relax.Call]:
    return isinstance(value, relax.Call) and value.op == Op.get(f"relax.{name}")


@mutator
class _LinearLowering(PyExprMutator):
    def __init__(self, module: tvm.IRModule, features: CpuFeatures) -> None:
        super().__init__(module)
        self.features = features
        # result of a linear without bias -> its operands, until its bias is found
        self.products: dict[relax.Expr, tuple[relax.Expr, relax.Expr]] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if _is_call(visited, "matmul"):
            return self._product(visited)
        if _is_call(visited, "add"):
            return self._sum(visited)
        return visited

    def _behind(self, value: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(value) if isinstance(value, relax.Var) else value

    def _renamed(self, value: relax.Expr) -> relax.Expr:
        """What a variable that is bound to another variable stands for."""
        behind = self._behind(value)
        while isinstance(behind, relax.Var):
            value, behind = behind, self._behind(behind)
        return value

    def _weight(self, value: relax.Expr) -> relax.Expr | None:
        """The stored [out, in] parameter behind permute_dims and, perhaps, astype."""
        turned = self._behind(value)
        if not _is_call(turned, "permute_dims") or len(static_shape(turned.args[0])) != 2:
            return None
        stored = turned.args[0]
        widened = self._behind(stored)
        if _is_call(widened, "astype"):
            stored = widened.args[0]
        is_parameter = isinstance(stored, relax.Var) and self.lookup_binding(stored) is None
        return stored if is_parameter and dtype_of(stored) in _STORED else None

    def _product(self, call: relax.Call) -> relax.Expr:
        x, weight = call.args[0], self._weight(call.args[1])
        if weight is None or dtype_of(x) != "float32":
            return call
        result = self._emit(x, weight, None)
        self.products[result] = (x, weight)
        return result

    def _sum(self, call: relax.Call) -> relax.Expr:
        for summand, bias in (tuple(call.args), tuple(call.args)[::-1]):
            product = self._renamed(summand)
            if product not in self.products or len(static_shape(bias)) != 1:
                continue
            x, weight = self.products[product]
            if static_shape(bias) == static_shape(weight)[:1]:
                return self._emit(x, weight, bias)
        return call

    def _emit(self, x: relax.Expr, weight: relax.Expr, bias: relax.Expr | None) -> relax.Var:
        *batch, inputs = static_shape(x)
        rows, outputs = prod(batch), static_shape(weight)[0]
        kernel = linear(
            rows,
            outputs,
            inputs=inputs,
            weight_dtype=dtype_of(weight),
            has_bias=bias is not None,
            features=self.features,
        )
        name = add_kernel(self.builder_, kernel, "linear")
        flat = self.builder_.emit(relax.op.reshape(x, [rows, inputs]))
        arguments: Sequence[relax.Expr] = [flat, weight] if bias is None else [flat, weight, bias]
        result = self.builder_.emit(
            relax.call_tir(name, arguments, out_ty=relax.TensorType([rows, outputs], "float32"))
        )
        return self.builder_.emit(relax.op.reshape(result, [*batch, outputs]))


def lower_linears(module: tvm.IRModule, features: CpuFeatures) -> tvm.IRModule:
    """Rewrite `main`; what became dead is removed later by DeadCodeElimination."""
    lowering = _LinearLowering(module, features)
    main = module.get_global_var("main")
    lowering.builder_.update_func(main, lowering.visit_expr(module["main"]))
    return lowering.builder_.get()
