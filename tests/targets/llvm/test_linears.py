"""Products with stored weights become kernel calls; no float copy of a weight is left."""

from collections.abc import Callable
from typing import Literal

import pytest
import tvm
from relax_calls import calls_of, kernel_calls, name_of, operators
from rewritten_model import rewritten
from traced_models import TracedModels
from tvm import relax

from compiler.contracts.program import Phase
from compiler.relax import relax_from_program
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQKV
from passes.pad_vocabulary import PadVocabulary
from targets.llvm.features import from_names
from targets.llvm.fused import fused_converters
from targets.llvm.kernel_calls import dtype_of, static_shape
from targets.llvm.linears import lower_linears
from targets.llvm.row_kernels import RowKernels

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
    return relax.transform.DeadCodeElimination()(lower_linears(builder.get(), RowKernels(FEATURES)))


def turned(builder: relax.BlockBuilder, w: relax.Var) -> relax.Var:
    wide = w if dtype_of(w) == "float32" else builder.emit(relax.op.astype(w, "float32"))
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
    assert operators(module) == {"call_tir", "reshape"}
    (call,) = kernel_calls(module)
    x, w, b = module["main"].params
    assert static_shape(call.arguments[0]) == (4, 32)
    assert call.arguments[1].same_as(w)
    assert dtype_of(w) == dtype
    assert [one.same_as(b) for one in call.arguments[2:]] == ([True] if build is biased else [])
    assert call.shape == (4, 48)
    assert static_shape(module["main"].body.body) == (1, 4, 48)
    assert static_shape(x) == (1, 4, 32)


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
    called = [call.kernel for call in kernel_calls(module)]
    assert len(called) == 2
    assert len(set(called)) == 1


def test_a_product_that_is_read_twice_keeps_its_value():
    def read_twice(builder, x, w, b):
        raw = builder.emit(relax.op.matmul(x, turned(builder, w)))
        total = builder.emit(relax.op.add(raw, b))
        return relax.op.multiply(raw, total)

    module = lowered(read_twice)
    assert len(kernel_calls(module)) == 2
    assert operators(module) == {"call_tir", "reshape", "multiply"}


@pytest.mark.parametrize("size", [1, 47])
def test_another_addend_is_no_bias(size: int):
    def broadcast(builder, x, w, b):
        raw = builder.emit(relax.op.matmul(x, turned(builder, w)))
        return relax.op.add(raw, b) if size == 1 else raw

    module = lowered(broadcast, bias=size)
    assert operators(module) == (
        {"call_tir", "reshape", "add"} if size == 1 else {"call_tir", "reshape"}
    )


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
    assert kernel_calls(module) == []


def test_attention_s_products_are_left(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    module = lower_linears(relax_from_program(program), RowKernels(FEATURES))
    module = relax.transform.DeadCodeElimination()(module)
    # Seven linears and the head; scores and context stay.
    assert len(kernel_calls(module)) == 8
    assert module.script().count("R.matmul") == 2


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_float_copy_of_a_stored_weight_is_left(
    traced_models: TracedModels, dtype: Literal["bfloat16", "float16"], phase: Phase
):
    program, _ = rewritten(traced_models, phase, past=0, valid=1, dtype=dtype)
    module = relax_from_program(program, fused=fused_converters(RowKernels(FEATURES)))
    before = relax.transform.DeadCodeElimination()(module)
    after = relax.transform.DeadCodeElimination()(lower_linears(module, RowKernels(FEATURES)))

    assert len(_widened_matrices(before, dtype)) == 8
    assert _widened_matrices(after, dtype) == []
    linears = [call for call in kernel_calls(after) if call.kind == "linear"]
    assert len(linears) == 8
    assert "matmul" not in operators(after)
    given = [name_of(call.arguments[2]) for call in linears if len(call.arguments) == 3]
    assert sorted(given) == [f"model.layers.0.self_attn.{part}_proj.bias" for part in "kqv"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joined_linears_are_one_call_each(
    traced_models: TracedModels, dtype: Literal["float32", "bfloat16"]
):
    added = (FuseQKV(), FuseGateUp(), PadVocabulary(multiple=24))
    program, _ = rewritten(traced_models, "prefill", past=0, valid=1, dtype=dtype, added=added)
    module = relax_from_program(program, fused=fused_converters(RowKernels(FEATURES)))
    module = relax.transform.DeadCodeElimination()(lower_linears(module, RowKernels(FEATURES)))

    linears = [call for call in kernel_calls(module) if call.kind == "linear"]
    weights = {name_of(call.arguments[1]): call for call in linears}
    layer = "model.layers.0"
    assert set(weights) == {
        f"{layer}.self_attn.qkv_proj.weight",
        f"{layer}.self_attn.o_proj.weight",
        f"{layer}.mlp.gate_up_proj.weight",
        f"{layer}.mlp.down_proj.weight",
        "lm_head.weight",
    }
    biases = [name_of(call.arguments[2]) for call in linears if len(call.arguments) == 3]
    assert biases == [f"{layer}.self_attn.qkv_proj.bias"]
    assert weights["lm_head.weight"].shape == (1, 96)
    assert "matmul" not in operators(module)
    assert _widened_matrices(module, dtype) == []


def _widened_matrices(module: tvm.IRModule, dtype: str) -> list[str]:
    """The stored matrices that `main` casts."""
    cast = [call.args[0] for call in calls_of(module, "astype")]
    return [name_of(one) for one in cast if dtype_of(one) == dtype and len(static_shape(one)) == 2]
