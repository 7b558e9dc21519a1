"""What counts as the same graph but for dimensions."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from traced_models import TracedModels

from compiler.contracts.program import Program
from compiler.contracts.weights import concat, cut
from compiler.numerics.isomorphism import difference


def node(program: Program, op: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.op == op)


def rename_node(program: Program) -> None:
    node(program, "Softmax").name = "softmax"


def change_operator(program: Program) -> None:
    node(program, "Sigmoid").op = "Tanh"


def change_edge(program: Program) -> None:
    add = next(n for n in program.graph.nodes if n.op == "Sub" or n.op == "Mul")
    add.inputs = list(add.inputs)[::-1]


def change_axis(program: Program) -> None:
    node(program, "Softmax").attrs["axis"] = 1


def change_permutation(program: Program) -> None:
    one = next(n for n in program.graph.nodes if n.op == "Transpose" and len(n.attrs["perm"]) == 4)
    one.attrs["perm"] = [0, 2, 3, 1]


def change_axes(program: Program) -> None:
    one = next(
        n
        for n in program.graph.nodes
        if n.op == "Unsqueeze" and isinstance(n.inputs[1], gs.Constant)
    )
    axes = one.inputs[1]
    assert isinstance(axes, gs.Constant)
    one.inputs[1] = gs.Constant(axes.name, np.asarray(axes.values) + 1)


def drop_node(program: Program) -> None:
    program.graph.nodes.pop()


def drop_parameter(program: Program) -> None:
    del program.weights["model.norm.weight"]
    program.graph.inputs = [t for t in program.graph.inputs if t.name != "model.norm.weight"]


def change_expression(program: Program) -> None:
    name = next(n for n in program.weights if n.endswith("o_proj.weight"))
    weight = program.weights[name]
    program.weights[name] = concat([cut(weight, 0, 1, weight.shape[0]), cut(weight, 0, 0, 1)])


def drop_output(program: Program) -> None:
    program.graph.outputs.pop()


def alias(program: Program) -> None:
    program.aliases["present.0.key"] = "past_key_values.0.key"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (rename_node, "(Softmax) is softmax (Softmax) in the probe"),
        (change_operator, "(Sigmoid) is model.layers.0.mlp"),
        (change_edge, "reads other tensors in the probe"),
        (change_axis, "has other attributes in the probe"),
        (change_permutation, "has other attributes in the probe"),
        (change_axes, "works on other axes in the probe"),
        (drop_node, "only one of them has the node"),
        (drop_parameter, "only one of them has the parameter"),
        (change_expression, "o_proj.weight is made in another way in the probe"),
        (drop_output, "only one of them has the output present.1.value"),
        (alias, "their aliases or `logits_of` differ"),
    ],
)
def test_differences(traced_models: TracedModels, edit: Callable[[Program], None], said: str):
    real = traced_models.programs("mha").programs["prefill"]
    probe = traced_models.probe("mha").programs.programs["prefill"]
    assert difference(real, probe) is None
    edit(probe)
    found = difference(real, probe)
    assert found is not None
    assert said in found
