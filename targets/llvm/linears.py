"""Linears become calls to the product kernels, before anything is legalized.

    matmul(x, permute_dims(astype(W[out, in]))) (+ bias)  ->  call_tir(linear, [x, W, bias])
    matmul(x, permute_dims(dequantize(W, s))) (+ bias)    ->  call_tir(linear, [x, W, s, bias])
    and where x is dequantize(codes, scales) as well
                              ->  call_tir(integer_linear, [codes, scales, W, s, bias])

The weight stays in its storage dtype; a kernel widens it in registers, or multiplies its codes as
they are. Codes and an int8 weight with groups multiply in floats. A product that is no linear (no
parameter, or not transposed) is left to TVM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.llvm.kernel_calls import dtype_of, static_shape
from targets.llvm.kernels.byte_products import EXACT_INPUTS
from targets.llvm.kernels.integer_linear import integer_linear
from targets.llvm.kernels.linear import linear
from targets.llvm.row_kernels import RowKernels
from targets.llvm.stored_operands import Codes, Operands, StoredMatrix, is_call


@dataclass(frozen=True)
class _Product:
    """A linear's operands: x, or the codes that it is made of, and the weight."""

    x: relax.Expr
    weight: StoredMatrix
    codes: Codes | None


@mutator
class _LinearLowering(PyExprMutator):
    def __init__(self, module: tvm.IRModule, kernels: RowKernels) -> None:
        super().__init__(module)
        self.kernels = kernels
        self.operands = Operands(self.lookup_binding)
        # result of a linear without bias -> its operands, until its bias is found
        self.products: dict[relax.Expr, _Product] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if is_call(visited, "matmul"):
            return self._product(visited)
        if is_call(visited, "add"):
            return self._sum(visited)
        return visited

    def _renamed(self, value: relax.Expr) -> relax.Expr:
        """What a variable that is bound to another variable stands for."""
        behind = self.lookup_binding(value) if isinstance(value, relax.Var) else value
        while isinstance(behind, relax.Var):
            value, behind = behind, self.lookup_binding(behind)
        return value

    def _product(self, call: relax.Call) -> relax.Expr:
        x, weight = call.args[0], self.operands.weight(call.args[1])
        if weight is None or dtype_of(x) != "float32":
            return call
        product = _Product(x, weight, self._codes(x, weight))
        result = self._emit(product, None)
        self.products[result] = product
        return result

    def _codes(self, x: relax.Expr, weight: StoredMatrix) -> Codes | None:
        """The codes behind x, where the weight is int8 with a scale for each output alone."""
        is_exact = static_shape(x)[-1] <= EXACT_INPUTS
        if weight.scale is None or weight.group or not is_exact:
            return None
        return self.operands.codes(x)

    def _sum(self, call: relax.Call) -> relax.Expr:
        for summand, bias in (tuple(call.args), tuple(call.args)[::-1]):
            product = self.products.get(self._renamed(summand))
            if product is None or len(static_shape(bias)) != 1:
                continue
            if static_shape(bias) == static_shape(product.weight.values)[:1]:
                return self._emit(product, bias)
        return call

    def _emit(self, product: _Product, bias: relax.Expr | None) -> relax.Var:
        *batch, inputs = static_shape(product.x)
        rows, outputs = prod(batch), static_shape(product.weight.values)[0]
        x = product.x if product.codes is None else product.codes.values
        flat = self.builder_.emit(relax.op.reshape(x, [rows, inputs]))
        kernel = self._kernel(product, rows, has_bias=bias is not None)
        scales = None if product.codes is None else product.codes.scales
        given = (flat, scales, product.weight.values, product.weight.scale, bias)
        arguments: Sequence[relax.Expr] = [one for one in given if one is not None]
        result = self.builder_.emit(
            relax.call_tir(kernel, arguments, out_ty=relax.TensorType([rows, outputs], "float32"))
        )
        return self.builder_.emit(relax.op.reshape(result, [*batch, outputs]))

    def _kernel(self, product: _Product, rows: int, *, has_bias: bool) -> tvm.ir.GlobalVar:
        weight = product.weight
        outputs, inputs = static_shape(weight.values)
        if product.codes is not None:
            build = partial(
                integer_linear,
                rows,
                outputs,
                inputs=inputs,
                has_bias=has_bias,
                features=self.kernels.features,
            )
            return self.kernels.add(self.builder_, build, "integer_linear")
        build = partial(
            linear,
            rows,
            outputs,
            inputs=inputs,
            weight_dtype=dtype_of(weight.values),
            has_bias=has_bias,
            features=self.kernels.features,
            group=weight.group,
        )
        return self.kernels.add(self.builder_, build, "linear")


def lower_linears(module: tvm.IRModule, kernels: RowKernels) -> tvm.IRModule:
    """Rewrite `main`; what became dead is removed later by DeadCodeElimination.

    Kernels are noted in `kernels`.
    """
    lowering = _LinearLowering(module, kernels)
    main = module.get_global_var("main")
    lowering.builder_.update_func(main, lowering.visit_expr(module["main"]))
    return lowering.builder_.get()
