"""Linears over packed weights: what becomes of a graph that unpacks them, and what is left."""

from collections.abc import Sequence

import pytest
import tvm
from relax_calls import kernel_calls, name_of, operators
from tvm import relax

from targets.llvm.features import from_names
from targets.llvm.kernel_calls import static_shape
from targets.llvm.kernels.packed_weight import packed_shape
from targets.llvm.packed_linears import lower_packed_linears
from targets.llvm.row_kernels import RowKernels, choose_forms

FEATURES = from_names(["avx512f"])
TOKENS, INPUTS = 4, 64


def unpacked(
    builder: relax.BlockBuilder, packed: relax.Var, outputs: int, *, inputs: int = INPUTS
) -> relax.Var:
    """What UnpackedWeight is inlined to."""
    turned = builder.emit(relax.op.permute_dims(packed, [0, 2, 4, 1, 3, 5]))
    n, k, _, _, _, quad = static_shape(packed)
    flat = builder.emit(relax.op.reshape(turned, [32 * n, 16 * quad * k]))
    # TVM annotates lists of numbers as expressions.
    bounds = (0, 1), (0, 0), (outputs, inputs)
    return builder.emit(relax.op.strided_slice(flat, *bounds))  # pyright: ignore[reportArgumentType]


def widened(builder: relax.BlockBuilder, weight: relax.Var, scale: relax.Var | None) -> relax.Var:
    if scale is None:
        wide = builder.emit(relax.op.astype(weight, "float32"))
    else:
        zero = relax.const(0, "int8")
        wide = builder.emit(relax.op.dequantize(weight, scale, zero, axis=0, out_dtype="float32"))
    return builder.emit(relax.op.permute_dims(wide, [1, 0]))


class Graph:
    """`main(x[1, T, K], ..)`, or of a window: `main(input_ids[1, T], valid_length[1], x, ..)`."""

    def __init__(self, *, dtype: str = "bfloat16", outputs: Sequence[int], window: bool = False):
        self.builder = relax.BlockBuilder()
        self.dtype, self.outputs = dtype, outputs
        self.x = relax.Var("x", relax.TensorType([1, TOKENS, INPUTS], "float32"))
        ids = relax.Var("input_ids", relax.TensorType([1, TOKENS], "int64"))
        valid = relax.Var("valid_length", relax.TensorType([1], "int64"))
        self.weights = [
            relax.Var(f"w{i}", relax.TensorType(list(packed_shape(n, INPUTS, dtype)), dtype))
            for i, n in enumerate(outputs)
        ]
        self.scales = [
            relax.Var(f"s{i}", relax.TensorType([n], "float32")) for i, n in enumerate(outputs)
        ]
        self.biases = [
            relax.Var(f"b{i}", relax.TensorType([n], "float32")) for i, n in enumerate(outputs)
        ]
        lengths = [ids, valid] if window else []
        self.params = [*lengths, self.x, *self.weights, *self.scales, *self.biases]

    def product(self, number: int, x: relax.Var | None = None) -> relax.Var:
        scale = self.scales[number] if self.dtype == "int8" else None
        weight = unpacked(self.builder, self.weights[number], self.outputs[number])
        turned = widened(self.builder, weight, scale)
        return self.builder.emit(relax.op.matmul(self.x if x is None else x, turned))

    def lowered(self, build) -> tvm.IRModule:
        with self.builder.function("main", self.params):
            with self.builder.dataflow():
                result = self.builder.emit_output(build(self))
            self.builder.emit_func_output(result)
        kernels = RowKernels(FEATURES)
        module = lower_packed_linears(self.builder.get(), kernels)
        return relax.transform.DeadCodeElimination()(choose_forms(module, kernels))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_linears_over_one_x_are_one_call(dtype: str):
    def build(graph: Graph) -> relax.Expr:
        found = [graph.product(i) for i in range(3)]
        biased = graph.builder.emit(relax.op.add(found[1], graph.biases[1]))
        return relax.Tuple([found[0], biased, found[2]])

    graph = Graph(dtype=dtype, outputs=(64, 32, 40))
    module = graph.lowered(build)
    (call,) = kernel_calls(module)
    assert operators(module) == {"call_tir", "reshape"}
    names = [name_of(one) for one in call.arguments[1:]]
    scaled = dtype == "int8"
    expected = [["w0", "s0"], ["w1", "s1", "b1"], ["w2", "s2"]]
    assert names == [
        name for group in expected for name in group if scaled or not name.startswith("s")
    ]


def test_linears_over_different_values_are_calls_of_their_own():
    def build(graph: Graph) -> relax.Expr:
        first = graph.product(0)
        return graph.product(1, first)

    module = Graph(outputs=(64, 32)).lowered(build)
    assert [len(call.arguments) for call in kernel_calls(module)] == [2, 2]


def test_activations_rounded_by_the_graph_are_taken_before_the_rounding():
    def build(graph: Graph) -> relax.Expr:
        narrow = graph.builder.emit(relax.op.astype(graph.x, "bfloat16"))
        return graph.product(0, graph.builder.emit(relax.op.astype(narrow, "float32")))

    module = Graph(outputs=(64,)).lowered(build)
    assert operators(module) == {"call_tir", "reshape"}
    (call,) = kernel_calls(module)
    assert "tdpbf16ps" in module[call.kernel].script()


def test_activations_that_the_graph_does_not_round_are_not():
    module = Graph(outputs=(64,)).lowered(lambda graph: graph.product(0))
    (call,) = kernel_calls(module)
    assert "tdpbf16ps" not in module[call.kernel].script()


def test_the_rows_of_a_window_end_with_the_last_real_one():
    module = Graph(outputs=(64,), window=True).lowered(lambda graph: graph.product(0))
    (call,) = kernel_calls(module)
    assert name_of(call.arguments[-1]) == "valid_length"


def test_an_embedding_reads_the_packed_rows():
    def build(graph: Graph) -> relax.Expr:
        table = unpacked(graph.builder, graph.weights[0], 96)
        ids = graph.builder.emit(relax.op.astype(graph.biases[0], "int64"))
        rows = graph.builder.emit(relax.op.take(table, ids, axis=0, mode="clip"))
        return relax.op.astype(rows, "float32")

    module = Graph(outputs=(96,)).lowered(build)
    (call,) = kernel_calls(module)
    assert call.kernel.startswith("packed_rows")
    assert operators(module) == {"call_tir", "reshape", "astype"}


def test_a_product_that_is_read_twice_keeps_its_value():
    def build(graph: Graph) -> relax.Expr:
        raw = graph.product(0)
        return relax.op.multiply(raw, graph.builder.emit(relax.op.add(raw, graph.biases[0])))

    module = Graph(outputs=(64,)).lowered(build)
    assert operators(module) == {"call_tir", "reshape", "add", "multiply"}
    (call,) = kernel_calls(module)
    assert len(call.arguments) == 2


def test_another_cut_is_no_unpacked_weight():
    def build(graph: Graph) -> relax.Expr:
        weight = unpacked(graph.builder, graph.weights[0], 30)  # packed for 64 outputs
        return relax.op.matmul(graph.x, widened(graph.builder, weight, None))

    module = Graph(outputs=(64,)).lowered(build)
    assert kernel_calls(module) == []
    assert "matmul" in operators(module)
