"""The skeleton and its weight table: parameters, pickling, and a cleanup that stays linear."""

import pickle
from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from program_text import program_from_text, text_of
from traced_models import TracedModels

from compiler.contracts.program import (
    FUSED_DOMAIN,
    OPSET,
    Program,
    ProgramSet,
    TensorSpec,
    tidy,
)
from compiler.contracts.weights import cast, source, transpose

TEXT = """
main (float[1, 4] x, float[4, 2] "lm_head.weight", float[2] "lm_head.bias") => (float[1, 2] y)
{
  ["lm_head/MatMul"] product = MatMul (x, "lm_head.weight")
  ["lm_head/Add"] y = Add (product, "lm_head.bias")
}
"""
DOUBLE = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    Double (x) => (y) {{ y = Add (x, x) }}
    """
)


@pytest.fixture
def program() -> Program:
    return program_from_text(TEXT)


def test_activations_are_the_inputs_without_the_parameters(program: Program):
    assert program.inputs() == (TensorSpec("x", "float32", (1, 4)),)
    assert program.outputs() == (TensorSpec("y", "float32", (1, 2)),)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_an_added_parameter_has_its_dtype(program: Program, dtype: str):
    weight = cast(source("extra", (3, 5), "float32"), dtype)
    program.add_parameter("extra.weight", weight)
    assert program.weights["extra.weight"] is weight
    proto = {value.name: value for value in program.model().graph.input}["extra.weight"]
    kind = onnx.TensorProto.DataType.Name(proto.type.tensor_type.elem_type)
    assert (
        kind
        == {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int8": "INT8"}[dtype]
    )
    assert [axis.dim_value for axis in proto.type.tensor_type.shape.dim] == [3, 5]


def test_a_parameter_is_added_once(program: Program):
    with pytest.raises(AssertionError, match=r"parameter lm_head\.bias exists"):
        program.add_parameter("lm_head.bias", source("b", (2,), "float32"))


def test_pruning_drops_unread_parameters_and_keeps_activations(program: Program):
    program.add_parameter("unread.weight", source("unread", (2,), "float32"))
    program.graph.inputs.append(gs.Variable("unread_input", np.dtype(np.int64), [1]))
    program.prune_parameters()
    assert set(program.weights) == {"lm_head.weight", "lm_head.bias"}
    assert [spec.name for spec in program.inputs()] == ["x", "unread_input"]


def test_model_is_valid_and_says_nothing_of_the_machine(program: Program):
    program.functions["Double"] = DOUBLE
    model = program.model()
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version, model.ir_version) == ("graphlower", "", 10)
    assert {one.domain: one.version for one in model.opset_import} == {"": OPSET, FUSED_DOMAIN: 1}
    assert [function.name for function in model.functions] == ["Double"]
    assert not model.graph.initializer


def test_pickling_keeps_everything(program: Program):
    program.functions["Double"] = DOUBLE
    program.aliases["y"] = "x"
    program.weights["lm_head.weight"] = transpose(source("embed", (2, 4), "bfloat16"))
    copy = pickle.loads(pickle.dumps(program))
    assert text_of(copy) == text_of(program)
    assert copy.model() == program.model()
    assert copy.weights == program.weights
    assert copy.aliases == {"y": "x"}
    assert copy.checkpoint_tensors == program.checkpoint_tensors
    for field in ("phase", "tokens", "context", "layers"):
        assert getattr(copy, field) == getattr(program, field)


@pytest.mark.parametrize("copied", [Program.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_a_copy(traced_models: TracedModels, copied: Callable[[Program], Program]):
    program = traced_models.programs("gqa").programs["decode"]
    before = program.model().SerializeToString(deterministic=True)
    weights = dict(program.weights)
    copy = copied(program)
    assert copy.model().SerializeToString(deterministic=True) == before
    assert (copy.weights, copy.layers, copy.logits_of) == (weights, program.layers, "all")
    copy.graph.nodes[0].name = "renamed"
    copy.weights.clear()
    copy.aliases["a"] = "b"
    assert program.model().SerializeToString(deterministic=True) == before
    assert (program.weights, program.aliases) == (weights, {})


def test_what_both_phases_read_is_stored_once(traced_models: TracedModels):
    programs = traced_models.programs("mha")
    both = programs.stored_weights()
    assert set(both) == set(ProgramSet({"decode": programs.programs["decode"]}).stored_weights())
    assert all(weight.key == key for key, weight in both.items())
    assert sum(len(program.weights) for program in programs) == 2 * len(both)


# -- tidy


def _chain(length: int) -> gs.Graph:
    """x + p0 + p1 + ..., each addend a graph input, in the wrong order, with a dead node."""
    x = gs.Variable("x", np.dtype(np.float32), [1])
    inputs, nodes, total = [x], [], x
    for index in range(length):
        addend = gs.Variable(f"p{index}", np.dtype(np.float32), [1])
        result = gs.Variable(f"sum{index}", np.dtype(np.float32), [1])
        nodes.append(gs.Node("Add", f"add{index}", inputs=[total, addend], outputs=[result]))
        inputs.append(addend)
        total = result
    nodes.append(gs.Node("Neg", "dead", inputs=[x], outputs=[gs.Variable("nobody")]))
    nodes = [*nodes[1::2], *nodes[::2]]
    return gs.Graph(nodes=nodes, inputs=inputs, outputs=[total], opset=OPSET)


def test_tidy_drops_what_is_dead_and_sorts():
    graph = _chain(5)
    unread = gs.Variable("unread", np.dtype(np.float32), [1])
    graph.inputs.append(unread)
    assert tidy(graph) is graph
    assert [node.name for node in graph.nodes] == [f"add{index}" for index in range(5)]
    assert [tensor.name for tensor in graph.inputs] == ["x", *(f"p{i}" for i in range(5)), "unread"]


def test_tidy_compares_tensors_in_proportion_to_their_number(monkeypatch: pytest.MonkeyPatch):
    compared = 0
    plain = gs.Tensor.__eq__

    def counted(self: gs.Tensor, other: object) -> bool:
        nonlocal compared
        compared += 1
        return plain(self, other)

    graph = _chain(200)
    monkeypatch.setattr(gs.Tensor, "__eq__", counted)
    tidy(graph)
    assert compared <= 200
