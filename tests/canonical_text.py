"""A program as text in which no name of a node or tensor occurs: equal texts, isomorphic graphs.

Nodes are numbered as they are reached from the outputs, inputs in order. Operators take their
inputs in order and outputs have names, so that the numbering depends on nothing else.
"""

import onnx
import onnx.numpy_helper

from compiler.contracts.program import Program


def canonical_text(program: Program) -> str:
    """The signature, and a line for each node that reaches an output: operator, attributes, inputs.

    Parameters and constants stand in the lines of what reads them, with shape, dtype and, for
    constants, value; parameters that are the same tensor have the same number.
    """
    model = program.model()
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    signature = {spec.name for spec in program.inputs()}
    shapes = {value.name: value.type.tensor_type for value in graph.input}
    numbers: dict[str, str] = {}
    lines: list[str] = []

    def spell(name: str) -> str:
        if not name:
            return "none"
        if name in signature:
            return name
        if name in constants:
            value = onnx.numpy_helper.to_array(constants[name])
            return f"{value.dtype}{list(value.shape)}{value.tolist()}"
        if name not in makers:
            kind = shapes[name]
            axes = [axis.dim_value for axis in kind.shape.dim]
            number = numbers.setdefault(name, f"parameter {len(numbers)}")
            return f"{number} {kind.elem_type}{axes}"
        return visit(makers[name], list(makers[name].output).index(name))

    def visit(node: onnx.NodeProto, output: int) -> str:
        key = f"node {node.name}"
        if key not in numbers:
            inputs = [spell(name) for name in node.input]
            numbers[key] = f"%{len(lines)}"
            attributes = sorted(onnx.helper.printable_attribute(one) for one in node.attribute)
            lines.append(
                f"{numbers[key]} = {node.domain}{node.op_type}({', '.join(inputs)}) {attributes}"
            )
        return numbers[key] + (f".{output}" if output else "")

    results = [f"{spec} = {spell(spec.name)}" for spec in program.outputs()]
    head = [str(spec) for spec in program.inputs()]
    functions = [function.name for function in model.functions]
    return "\n".join([*head, *lines, *results, *functions, f"{len(lines)} of {len(graph.node)}"])
