"""What the passes' golden tests compare, and change: programs as text."""

from collections.abc import Callable, Mapping

from compiler.contracts.program import Program
from compiler.contracts.weights import source, transpose
from compiler.pass_kit import program_from_text, text_of

__all__ = ["Golden", "changed", "linears_from_text", "program_from_text", "text_of"]

# The fixture of that name: (file in `golden/`, text) -> an assertion that they are equal.
Golden = Callable[[str, str], None]


def linears_from_text(text: str, *, layers: int = 1) -> Program:
    """The same, with linears as the trace leaves them: a matrix is the transpose of the stored."""
    program = program_from_text(text, layers=layers)
    shapes = dict(program.checkpoint_tensors)
    for node in program.graph.nodes:
        weight = program.weights.get(node.inputs[1].name) if node.op == "MatMul" else None
        if weight is not None and weight.op == "source":
            name = str(weight.attributes[0])
            shapes[name] = weight.shape[::-1]
            program.weights[name] = transpose(source(name, shapes[name], weight.dtype))
    program.checkpoint_tensors = shapes
    return program


def changed(text: str, replaced: Mapping[str, str]) -> str:
    """`text` with each key replaced; a key that is not there is a mistake of the test."""
    for old, new in replaced.items():
        assert old in text, f"{old!r} is not in the text"
        text = text.replace(old, new)
    return text
