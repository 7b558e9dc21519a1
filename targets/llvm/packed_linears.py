"""Linears over packed weights become calls to their kernel, those over one x together.

    matmul(x, permute_dims(astype(unpacked(P)))) (+ bias)         P bfloat16
    matmul(x, permute_dims(dequantize(unpacked(P), s))) (+ bias)  P int8
                 ->  call_tir(packed_linear, [x, P, (s,) (bias,) P', ..]) -> (y, y', ..)
    take(unpacked(P), ids)  ->  call_tir(packed_rows, [P, ids])

where unpacked(P) is strided_slice(reshape(permute_dims(P))), what UnpackedWeight was inlined to. x
may be astype(astype(x, bfloat16), float32), which the tiles take as it is meant, or
dequantize(codes, scales). q, k and v keep results of their own, and so do gate and up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from targets.llvm.function_bindings import Bindings, only_main
from targets.llvm.kernel_calls import add_kernel, dtype_of, static_shape
from targets.llvm.kernels.packed_linear import PackedMatrix, packed_linear
from targets.llvm.kernels.packed_rows import packed_rows
from targets.llvm.row_kernels import RowKernels
from targets.llvm.stored_operands import Codes, Operands, PackedOperand, is_call


@dataclass(frozen=True)
class _Product:
    """One linear: the call that is its result, its weight and its bias."""

    result: relax.Expr
    weight: PackedOperand
    bias: relax.Expr | None


@dataclass
class _Group:
    """Linears over one x.

    Attributes:
        x: What they multiply: fp32, or before it was rounded; of codes, what those widen to.
        codes: int8 activations, or None.
        is_rounded: Whether x is rounded to bfloat16.
        products: In order.
        results: Of each, once they are emitted.
    """

    x: relax.Expr
    codes: Codes | None
    is_rounded: bool
    products: list[_Product] = field(default_factory=list)
    results: list[relax.Expr] = field(default_factory=list)


def _groups(bindings: Bindings) -> dict[relax.Expr, _Group]:
    """The call of each linear over a packed weight -> the linears over its x."""
    operands = Operands(bindings.value)
    found: dict[tuple[object, ...], _Group] = {}
    group_of: dict[relax.Expr, _Group] = {}
    for variable, value in bindings:
        if not is_call(value, "matmul"):
            continue
        weight = operands.packed_weight(value.args[1])
        if weight is None or dtype_of(value.args[0]) != "float32":
            continue
        x, codes, is_rounded = _multiplied(value.args[0], weight, operands)
        key = (x, weight.dtype, codes is None, is_rounded)
        group = found.setdefault(key, _Group(x, codes, is_rounded))
        result, bias = _with_bias(variable, value, weight, bindings)
        group.products.append(_Product(result, weight, bias))
        group_of[value] = group
    return group_of


def _multiplied(
    x: relax.Expr, weight: PackedOperand, operands: Operands
) -> tuple[relax.Expr, Codes | None, bool]:
    """X before it was rounded, its codes, and whether it is rounded to bfloat16."""
    if weight.dtype == "int8":
        return x, operands.codes(x), False
    before = operands.before_rounding(x)
    return (x, None, False) if before is None else (before, None, True)


def _with_bias(
    variable: relax.Var, product: relax.Expr, weight: PackedOperand, bindings: Bindings
) -> tuple[relax.Expr, relax.Expr | None]:
    """The sum of a product and a bias vector, where nothing else reads the product."""
    reader = bindings.only_reader(variable)
    found = None if reader is None else bindings.value(reader)
    if found is None or not is_call(found, "add"):
        return product, None
    for summand, bias in (tuple(found.args), tuple(found.args)[::-1]):
        is_parameter = isinstance(bias, relax.Var) and bindings.value(bias) is None
        is_ours = isinstance(summand, relax.Var) and summand.same_as(variable)
        if is_ours and is_parameter and static_shape(bias) == (weight.outputs,):
            return found, bias
    return product, None


@mutator
class _PackedLowering(PyExprMutator):
    def __init__(self, module: tvm.IRModule, kernels: RowKernels) -> None:
        super().__init__(module)
        self.kernels = kernels
        bindings = Bindings(only_main(module))
        self.operands = Operands(bindings.value)
        self.groups = _groups(bindings)
        # The call that is a product's result -> its group and its number there.
        self.results = {
            product.result: (group, number)
            for group in self.groups.values()
            for number, product in enumerate(group.products)
        }

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        group = self.groups.get(call)
        if group is not None and not group.results:
            group.results = self._emit(group)
        if call in self.results:
            group, number = self.results[call]
            return group.results[number]
        if is_call(call, "take"):
            table = self.operands.unpacked(call.args[0])
            if table is not None:
                return self._rows(table, self.visit_expr(call.args[1]))
        return super().visit_call_(call)

    def _emit(self, group: _Group) -> list[relax.Expr]:
        x = group.x if group.codes is None else group.codes.values
        inputs = group.products[0].weight.inputs
        rows = prod(static_shape(group.x)[:-1])
        flat = self.builder_.emit(relax.op.reshape(self.visit_expr(x), [rows, inputs]))
        scales = [] if group.codes is None else [self.visit_expr(group.codes.scales)]
        weights = [
            one
            for product in group.products
            for one in (product.weight.values, product.weight.scale, product.bias)
            if one is not None
        ]
        build = partial(
            packed_linear,
            rows,
            [
                PackedMatrix(product.weight.outputs, has_bias=product.bias is not None)
                for product in group.products
            ],
            inputs=inputs,
            weight_dtype=group.products[0].weight.dtype,
            x_dtype="float32" if group.codes is None else "int8",
            is_rounded=group.is_rounded,
        )
        types = [
            relax.TensorType([rows, product.weight.outputs], "float32")
            for product in group.products
        ]
        found = self.builder_.emit(
            relax.call_tir(
                self.kernels.add(self.builder_, build, "packed_linear"),
                [flat, *scales, *weights],
                out_ty=types[0] if len(types) == 1 else types,
            )
        )
        shape = static_shape(group.x)[:-1]
        return [
            self.builder_.emit(relax.op.reshape(one, [*shape, product.weight.outputs]))
            for one, product in zip(self._parts(found, len(types)), group.products, strict=True)
        ]

    def _parts(self, found: relax.Var, count: int) -> Sequence[relax.Expr]:
        if count == 1:
            return [found]
        return [self.builder_.emit(relax.TupleGetItem(found, i)) for i in range(count)]

    def _rows(self, table: PackedOperand, ids: relax.Expr) -> relax.Expr:
        shape = static_shape(ids)
        kernel = packed_rows(prod(shape), table.outputs, inputs=table.inputs, dtype=table.dtype)
        flat = self.builder_.emit(relax.op.reshape(ids, [prod(shape)]))
        rows = self.builder_.emit(
            relax.call_tir(
                add_kernel(self.builder_, kernel, "packed_rows"),
                [table.values, flat],
                out_ty=relax.TensorType([prod(shape), table.inputs], table.dtype),
            )
        )
        return relax.op.reshape(rows, [*shape, table.inputs])


def lower_packed_linears(module: tvm.IRModule, kernels: RowKernels) -> tvm.IRModule:
    """Rewrite `main`; what became dead is removed later by DeadCodeElimination."""
    lowering = _PackedLowering(module, kernels)
    main = module.get_global_var("main")
    lowering.builder_.update_func(main, lowering.visit_expr(module["main"]))
    return lowering.builder_.get()
