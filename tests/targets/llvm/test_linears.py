"""Products with stored weights become kernel calls; no float copy of a weight is left."""

from collections.abc import Callable

import pytest
import tvm
from rewritten_model import rewritten
from traced_models import TracedModels
from tvm import relax

from compiler.relax import relax_from_program
from targets.llvm.features import from_names
from targets.llvm.fused import fused_converters
from targets.llvm.linears import lower_linears

FEATURES = from_names(["avx2", "fma"])
Build = Callable[[relax.BlockBuilder, relax.Var, relax.Var, relax.Var], relax.Expr]


def lowered(
    build: Build, *, dtype: str = "bfloat16", weight: tuple[int, ...] = (48, 32), bias: int = 48
) -> tvm.IRModule:
    """`main(x[1, 4, 32], W, b)` before and after, what is dead removed."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([1, 4, 32], "float32"))
    w = relax.Var("w", relax.TensorType(list(weight), dtype))
    b = relax.Var("b", relax.TensorType([bias], "float32"))
    with builder.function("main", [x, w, b]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x, w, b))
        builder.emit_func_output(result)
    return relax.transform.DeadCodeElimination()(lower_linears(builder.get(), FEATURES))


def kernels(module: tvm.IRModule) -> list[str]:
    """The kernels that `main` calls, in order."""
    found: list[str] = []

    def visit(node: object) -> None:
        if isinstance(node, relax.Call) and node.op == tvm.ir.Op.get("relax.call_tir"):
            found.append(node.args[0].name_hint)

    relax.analysis.post_order_visit(module["main"], visit)
    return found


def operators(module: tvm.IRModule) -> set[str]:
    """The Relax operators that are left in `main`."""
    found: set[str] = set()

    def visit(node: object) -> None:
        if isinstance(node, relax.Call) and isinstance(node.op, tvm.ir.Op):
            found.add(node.op.name.removeprefix("relax."))

    relax.analysis.post_order_visit(module["main"], visit)
    return found


def turned(builder: relax.BlockBuilder, w: relax.Var) -> relax.Var:
    wide = w if str(w.ty.dtype) == "float32" else builder.emit(relax.op.astype(w, "float32"))
    return builder.emit(relax.op.permute_dims(wide, [1, 0]))


def product(builder: relax.BlockBuilder, x: relax.Var, w: relax.Var, b: relax.Var) -> relax.Expr:
    del b
    return relax.op.matmul(x, turned(builder, w))


def biased(builder: relax.BlockBuilder, x: relax.Var, w: relax.Var, b: relax.Var) -> relax.Expr:
    return relax.op.add(builder.emit(relax.op.matmul(x, turned(builder, w))), b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("build", [product, biased])
def test_a_linear_is_one_call_on_the_stored_weight(build: Build, dtype: str):
    module = lowered(build, dtype=dtype)
    assert kernels(module) == ["linear"] or kernels(module) == ["linear1"]
    assert operators(module) == {"call_tir", "reshape"}
    (call,) = [
        binding.value
        for block in module["main"].body.blocks
        for binding in block.bindings
        if binding.value.op == tvm.ir.Op.get("relax.call_tir")
    ]
    given = call.args[1].fields
    _, w, b = module["main"].params
    assert given[1].same_as(w)
    assert str(given[1].ty.dtype) == dtype
    assert [tensor.same_as(b) for tensor in given[2:]] == ([True] if build is biased else [])
    assert [int(axis) for axis in call.ty.shape] == [4, 48]
    assert [int(axis) for axis in module["main"].ret_ty.shape] == [1, 4, 48]


def test_the_bias_may_come_first():
    def swapped(builder, x, w, b):
        return relax.op.add(b, builder.emit(relax.op.matmul(x, turned(builder, w))))

    module = lowered(swapped)
    assert operators(module) == {"call_tir", "reshape"}


def test_equal_shapes_share_a_kernel():
    def twice(builder, x, w, b):
        del b
        first = builder.emit(relax.op.matmul(x, turned(builder, w)))
        second = builder.emit(relax.op.matmul(first, turned(builder, w)))
        return relax.op.add(first, second)

    module = lowered(twice, weight=(32, 32))
    called = kernels(module)
    assert len(called) == 2
    assert len(set(called)) == 1


def test_a_product_that_is_read_twice_keeps_its_value():
    def read_twice(builder, x, w, b):
        raw = builder.emit(relax.op.matmul(x, turned(builder, w)))
        total = builder.emit(relax.op.add(raw, b))
        return relax.op.multiply(raw, total)

    module = lowered(read_twice)
    assert len(kernels(module)) == 2
    assert operators(module) == {"call_tir", "reshape", "multiply"}


@pytest.mark.parametrize("size", [1, 47])
def test_another_addend_is_no_bias(size: int):
    def broadcast(builder, x, w, b):
        raw = builder.emit(relax.op.matmul(x, turned(builder, w)))
        return relax.op.add(raw, b) if size == 1 else raw

    module = lowered(broadcast, bias=size)
    assert operators(module) == ({"call_tir", "reshape", "add"} if size == 1 else {"call_tir", "reshape"})


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda _b, x, w, b: relax.op.matmul(x, w), id="not transposed"),
        pytest.param(
            lambda builder, x, w, b: relax.op.matmul(
                x, turned(builder, builder.emit(relax.op.negative(w)))
            ),
            id="computed",
        ),
    ],
)
def test_a_product_that_is_no_linear_is_left(build: Build):
    module = lowered(build, dtype="float32", weight=(32, 32), bias=32)
    assert "matmul" in operators(module)
    assert kernels(module) == []


def test_attention_s_products_are_left(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    module = lower_linears(relax_from_program(program), FEATURES)
    module = relax.transform.DeadCodeElimination()(module)
    # Seven linears and the head; scores and context stay.
    assert len(kernels(module)) == 8
    assert module.script().count("R.matmul") == 2


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_float_copy_of_a_stored_weight_is_left(traced_models: TracedModels, dtype, phase):
    program, _ = rewritten(traced_models, phase, past=0, valid=1, dtype=dtype)
    module = relax_from_program(program, fused=fused_converters(FEATURES))
    before = relax.transform.DeadCodeElimination()(module)
    after = relax.transform.DeadCodeElimination()(lower_linears(module, FEATURES))

    def widened(one: tvm.IRModule) -> list[str]:
        found: list[str] = []

        def visit(node: object) -> None:
            if not isinstance(node, relax.Call) or node.op != tvm.ir.Op.get("relax.astype"):
                return
            if len(node.args[0].ty.shape) == 2 and str(node.args[0].ty.dtype) == dtype:
                found.append(node.args[0].name)

        relax.analysis.post_order_visit(one["main"], visit)
        return found

    assert len(widened(before)) == 8
    assert widened(after) == []
    assert len([name for name in kernels(after) if name.startswith("linear")]) == 8
    assert "matmul" not in operators(after)
