"""The forms of kernels over rows that follow from the graph around them."""

from functools import partial

import tvm
from relax_calls import kernel_calls, name_of, operators
from tvm import relax

from targets.llvm.features import from_names
from targets.llvm.kernels.packed_linear import PackedMatrix, packed_linear
from targets.llvm.kernels.packed_weight import packed_shape
from targets.llvm.kernels.rms_norm import rms_norm
from targets.llvm.kernels.silu_mul import silu_mul
from targets.llvm.row_kernels import RowKernels, choose_forms

FEATURES = from_names(["avx512f"])
ROWS, WIDTH = 8, 64


def tensor(name: str, *shape: int, dtype: str = "float32") -> relax.Var:
    return relax.Var(name, relax.TensorType(list(shape), dtype))


def chosen(params: list[relax.Var], build) -> tvm.IRModule:
    """`build(builder, kernels)` as `main`, in the forms that are chosen."""
    builder, kernels = relax.BlockBuilder(), RowKernels(FEATURES)
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(build(builder, kernels))
        builder.emit_func_output(result)
    return relax.transform.DeadCodeElimination()(choose_forms(builder.get(), kernels))


def norm(builder: relax.BlockBuilder, kernels: RowKernels, x: relax.Expr, w: relax.Var):
    flat = builder.emit(relax.op.reshape(x, [ROWS, WIDTH]))
    name = kernels.add(
        builder, partial(rms_norm, ROWS, WIDTH, epsilon=1e-6, features=FEATURES), "rms_norm"
    )
    out_ty = relax.TensorType([ROWS, WIDTH], "float32")
    return builder.emit(relax.call_tir(name, [flat, w], out_ty=out_ty))


def test_a_norm_takes_the_sum_before_it():
    a, b, w = tensor("a", 1, ROWS, WIDTH), tensor("b", 1, ROWS, WIDTH), tensor("w", WIDTH)

    def build(builder: relax.BlockBuilder, kernels: RowKernels) -> relax.Expr:
        total = builder.emit(relax.op.add(a, b))
        return relax.Tuple([norm(builder, kernels, total, w), total])

    module = chosen([a, b, w], build)
    (call,) = kernel_calls(module)
    assert call.kernel.startswith("add_rms_norm")
    assert "add" not in operators(module)


def test_a_sum_with_a_vector_is_no_residual():
    a, b, w = tensor("a", 1, ROWS, WIDTH), tensor("b", WIDTH), tensor("w", WIDTH)

    def build(builder: relax.BlockBuilder, kernels: RowKernels) -> relax.Expr:
        return norm(builder, kernels, builder.emit(relax.op.add(a, b)), w)

    module = chosen([a, b, w], build)
    assert [call.kernel for call in kernel_calls(module)] == ["rms_norm"]
    assert "add" in operators(module)


def test_rows_of_a_window_are_limited_and_others_not():
    ids, valid = (
        tensor("input_ids", 1, ROWS, dtype="int64"),
        tensor("valid_length", 1, dtype="int64"),
    )
    x, w = tensor("x", 1, ROWS, WIDTH), tensor("w", WIDTH)

    def build(builder: relax.BlockBuilder, kernels: RowKernels) -> relax.Expr:
        return norm(builder, kernels, x, w)

    def arguments(params: list[relax.Var]) -> list[str]:
        (call,) = kernel_calls(chosen(params, build))
        return [name_of(one) for one in call.arguments[2:]]

    assert arguments([ids, valid, x, w]) == ["valid_length"]
    assert arguments([x, w]) == []
    # Several prompts at once: every row is one.
    slots = tensor("valid_length", ROWS, dtype="int64")
    assert arguments([ids, slots, x, w]) == []


def gated(*, is_swapped: bool = False, reads_gate: bool = False) -> tvm.IRModule:
    x = tensor("x", ROWS, WIDTH)
    shape = packed_shape(WIDTH, WIDTH, "bfloat16")
    weights = [tensor(f"w{i}", *shape, dtype="bfloat16") for i in range(2)]
    result = relax.TensorType([ROWS, WIDTH], "float32")

    def build(builder: relax.BlockBuilder, kernels: RowKernels) -> relax.Expr:
        form = partial(
            packed_linear, ROWS, [PackedMatrix(WIDTH)] * 2, inputs=WIDTH, weight_dtype="bfloat16"
        )
        product = kernels.add(builder, form, "packed_linear")
        both = builder.emit(relax.call_tir(product, [x, *weights], out_ty=[result, result]))
        parts = [builder.emit(relax.TupleGetItem(both, i)) for i in range(2)]
        flat = [builder.emit(relax.op.reshape(part, [ROWS, WIDTH])) for part in parts]
        name = kernels.add(builder, partial(silu_mul, ROWS, WIDTH, features=FEATURES), "silu_mul")
        given = flat[::-1] if is_swapped else flat
        active = builder.emit(relax.call_tir(name, given, out_ty=result))
        return relax.Tuple([active, flat[0]]) if reads_gate else active

    return chosen([x, *weights], build)


def test_gate_and_up_give_their_activation():
    (call,) = kernel_calls(gated())
    assert call.kernel.startswith("gated_linear")
    assert [name_of(one) for one in call.arguments] == ["x", "w0", "w1"]


def test_what_else_is_read_stays_a_result():
    assert len(kernel_calls(gated(reads_gate=True))) == 2


def test_the_second_weight_is_not_the_gate():
    assert len(kernel_calls(gated(is_swapped=True))) == 2
