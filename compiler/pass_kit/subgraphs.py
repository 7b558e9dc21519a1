"""A part of a case's graph as a case of its own.

    nodes: MatMul -> Add -> Softmax -> MatMul, of which Add and Softmax are kept
 -> inputs: what Add reads; outputs: what Softmax makes

Any set of nodes gives a graph. A float tensor that a node outside the set made becomes an input and
takes random values; one of integers becomes a constant, with the value that it had.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.program import CONSTANT_BYTES, Program
from compiler.contracts.weights import StoredTensor, Weight, source
from compiler.numerics.feeds import Lengths
from compiler.numerics.reference_run import ReferenceSession, with_outputs
from compiler.pass_kit.cases import Case


@dataclass(frozen=True)
class Observed:
    """A case's graph, and what every tensor in it is for one set of lengths.

    Attributes:
        case: The case, with these lengths.
        model: Its graph.
        values: Value of each tensor that a node makes; bfloat16 widened, as it is run.
        types: Element type of each, as far as ONNX infers it.
    """

    case: Case
    model: onnx.ModelProto
    values: Mapping[str, np.ndarray]
    types: Mapping[str, int]

    def names(self) -> tuple[str, ...]:
        """Its nodes, producers first."""
        return tuple(node.name for node in self.model.graph.node)


def observe(case: Case, lengths: Lengths) -> Observed:
    """Run the graph with every tensor as an output."""
    case = replace(case, lengths=(lengths,))
    model = case.program.model()
    made = [name for node in model.graph.node for name in node.output if name]
    session = ReferenceSession(with_outputs(model, made))
    values = session.run({**case.parameters(case.program), **case.inputs(lengths)})
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    return Observed(case, model, values, types)


def part_of(observed: Observed, names: Set[str], *, inputs: Set[str] = frozenset()) -> Case | None:
    """The case of these nodes.

    Args:
        observed: The whole.
        names: The nodes that are kept; at least one.
        inputs: Inputs of the whole that stay though no kept node reads them.

    Returns:
        None where a part would need a constant that is too large to be one.
    """
    whole, program = observed.model.graph, observed.case.program
    nodes = [node for node in whole.node if node.name in names]
    made = {name for node in nodes for name in node.output}
    read = list(dict.fromkeys(name for node in nodes for name in node.input if name))
    given = {value.name: value for value in whole.input}
    stored = {tensor.name: tensor for tensor in whole.initializer}
    kept = {name for name in given if name in read or name in inputs}
    cut = [name for name in read if name not in made and name not in given and name not in stored]
    known = [name for name in cut if observed.values[name].dtype.kind not in "fV"]
    if any(observed.values[name].nbytes > CONSTANT_BYTES for name in known):
        return None
    activations = [value for name, value in given.items() if name not in program.weights]
    graph = onnx.helper.make_graph(
        nodes,
        whole.name,
        [
            *(value for value in activations if value.name in kept),
            *(_value_info(observed, name) for name in cut if name not in known),
            *(v for name, v in given.items() if name in program.weights and name in kept),
        ],
        _outputs(observed, nodes, read),
        [
            *(tensor for name, tensor in stored.items() if name in read),
            *(onnx.numpy_helper.from_array(observed.values[name], name) for name in known),
        ],
    )
    weights = {name: weight for name, weight in program.weights.items() if name in kept}
    return with_graph(observed.case, graph, weights)


def integer_inputs(case: Case) -> frozenset[str]:
    """Token ids, masks, positions and lengths: a pass may want them where no node reads them."""
    return frozenset(spec.name for spec in case.program.inputs() if spec.dtype == "int64")


def with_graph(case: Case, graph: onnx.GraphProto, weights: Mapping[str, Weight]) -> Case:
    """`case` with another graph, and of everything else what that graph uses."""
    program = case.program
    opset = [onnx.helper.make_opsetid("", program.model().opset_import[0].version)]
    sources = {name for weight in weights.values() for name in weight.sources()}
    ends = ({value.name for value in graph.output}, {value.name for value in graph.input})
    part = replace(
        program,
        graph=gs.import_onnx(onnx.helper.make_model(graph, opset_imports=opset)),
        weights=dict(weights),
        checkpoint_tensors={
            name: shape for name, shape in program.checkpoint_tensors.items() if name in sources
        },
        aliases={
            output: cache
            for output, cache in program.aliases.items()
            if output in ends[0] and cache in ends[1]
        },
        functions=_functions(program, graph.node),
    )
    tensors = {name: tensor for name, tensor in case.tensors.items() if name in sources}
    return replace(case, program=part, tensors=tensors)


def with_plain_weights(case: Case) -> Case:
    """`case` with each parameter as a checkpoint tensor of its own name and shape."""
    program = case.program
    plain = {
        name: source(name, weight.shape, weight.dtype) for name, weight in program.weights.items()
    }
    tensors = {
        name: StoredTensor(Path(), 0, weight.shape, weight.dtype) for name, weight in plain.items()
    }
    shapes = {name: weight.shape for name, weight in plain.items()}
    part = replace(program, weights=plain, checkpoint_tensors=shapes)
    return replace(case, program=part, tensors=tensors)


def _value_info(observed: Observed, name: str) -> onnx.ValueInfoProto:
    value = observed.values[name]
    kind = observed.types.get(name) or onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, value.shape)


def _outputs(
    observed: Observed, nodes: Sequence[onnx.NodeProto], read: Iterable[str]
) -> list[onnx.ValueInfoProto]:
    """Outputs of the whole that are made here, and what no kept node reads."""
    declared = {value.name: value for value in observed.model.graph.output}
    consumed = set(read)
    made = [name for node in nodes for name in node.output if name]
    return [
        declared.get(name) or _value_info(observed, name)
        for name in made
        if name in declared or name not in consumed
    ]


def _functions(program: Program, nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.FunctionProto]:
    """The fused operators that the nodes call, and those that these call."""
    called: dict[str, onnx.FunctionProto] = {}
    waiting = [node.op_type for node in nodes]
    while waiting:
        name = waiting.pop()
        if name in program.functions and name not in called:
            called[name] = program.functions[name]
            waiting += [node.op_type for node in called[name].node]
    return called
