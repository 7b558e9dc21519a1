"""Programs from ONNX text, and the text of programs: what the golden tests of passes compare."""

import re

import onnx.parser
import onnx.printer
import onnx_graphsurgeon as gs

from compiler.contracts.program import OPSET, Phase, Program, TensorSpec, quiet_graphsurgeon
from compiler.contracts.weights import source


def program_from_text(
    text: str, *, phase: Phase = "prefill", tokens: int = 4, context: int = 10, layers: int = 1
) -> Program:
    """A program whose graph is `text`; inputs called `*.weight` and `*.bias` are its parameters."""
    quiet_graphsurgeon()
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {OPSET}]>\n{text}')
    graph = gs.import_onnx(model)
    for node in graph.nodes:
        node.domain = node.domain or None
    weights = {
        tensor.name: source(tensor.name, tuple(tensor.shape), "float32")
        for tensor in graph.inputs
        if tensor.name.endswith((".weight", ".bias"))
    }
    shapes = {name: weight.shape for name, weight in weights.items()}
    return Program(phase, graph, tokens, context, layers, weights, checkpoint_tensors=shapes)


def text_of(program: Program) -> str:
    """The signature and body of a program, a line for each thing that may change."""
    graph = program.model().graph
    keys = {name: weight.key for name, weight in sorted(program.weights.items())}
    sections = {
        "inputs": [_spec(spec) for spec in program.inputs()],
        "parameters": [f"{_spec(spec)} = {keys[spec.name]}" for spec in _parameters(program)],
        "outputs": [_spec(spec) for spec in program.outputs()],
        "aliases": [f"{output} = {cache}" for output, cache in sorted(program.aliases.items())],
        "constants": sorted(_constant(tensor) for tensor in graph.initializer),
        "nodes": [node_text(node) for node in graph.node],
    }
    filled = {title: lines for title, lines in sections.items() if lines}
    return "".join(
        f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in filled.items()
    )


def node_text(node: onnx.NodeProto) -> str:
    """One node on one line."""
    line = " ".join(onnx.printer.to_text(node).split())
    # The printer puts a space before each bracket of a call, and none elsewhere.
    return re.sub(r"(\w) \(", r"\1(", line)


def _parameters(program: Program) -> list[TensorSpec]:
    every = Program(**{**vars(program), "weights": {}})
    return [spec for spec in every.inputs() if spec.name in program.weights]


def _spec(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}] {spec.name}"


def _constant(tensor: onnx.TensorProto) -> str:
    array = onnx.numpy_helper.to_array(tensor)
    return f"{tensor.name} = {array.dtype}{list(array.shape)} {array.tolist()}"
