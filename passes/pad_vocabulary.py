"""The head's outputs are padded to a multiple, by rows of zeros, and cut off again.

    logits[.., V] = MatMul(h, W[in, V])
 -> logits[.., V] = Slice(MatMul(h, concat(W, zeros)[in, V + p]), 0:V)

Kernels and accelerators then see a product of whole tiles; the signature and the tokens stay, and
padding can never be chosen. An embedding tied to the head is padded as well, so that they stay one
copy; no token reaches its last rows. It stands before store-weights and quantization.

Declines a vocabulary that is a multiple already, a head whose weight is read elsewhere too or is
not stored [in, out], and a tied table that something else than a Gather of rows reads. Every logit
is the same sum; a runtime may add in another order for a wider product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import Weight, concat, transpose, zeros
from passes._match import add_node, head_product, module_of


def _tied_tables(program: Program, rows: Weight) -> list[gs.Tensor]:
    """Parameters that are the head's rows, [vocabulary, in], under another name."""
    parameters = [t for t in program.graph.inputs if t.name in program.weights]
    return [tensor for tensor in parameters if program.weights[tensor.name].key == rows.key]


def _problem(program: Program, head: gs.Node, multiple: int) -> str | None:
    """Why the head stays as it is; None where it is padded."""
    weight = head.inputs[1]
    if weight.name not in program.weights:
        return "its weight is stored otherwise than [in, out]"
    if len(weight.outputs) != 1:
        return f"{weight.name} is read by {[node.name for node in weight.outputs]}"
    if weight.shape[1] % multiple == 0:
        return f"its {weight.shape[1]} outputs are a multiple of {multiple} already"
    for table in _tied_tables(program, transpose(program.weights[weight.name])):
        for node in table.outputs:
            if node.op != "Gather" or node.inputs[0] is not table or node.attrs.get("axis", 0):
                return f"{table.name} is stored once with its weight, and {node.name} reads it"
    return None


def _set_weights(program: Program, parameters: Sequence[gs.Tensor], weight: Weight) -> None:
    for parameter in parameters:
        program.weights[parameter.name] = weight
        parameter.shape = list(weight.shape)


def pad_vocabulary(program: Program, multiple: int) -> PassReport:
    """Pad the head, and what is tied to it."""
    graph = program.graph
    head = head_product(graph, "Slice")
    if head is None:
        return PassReport(skips=(Skip("logits", "no MatMul makes them"),))
    problem = _problem(program, head, multiple)
    if problem is not None:
        return PassReport(skips=(Skip(head.name, problem),))
    parameter, product = head.inputs[1], head.outputs[0]
    rows = transpose(program.weights[parameter.name])
    vocabulary, hidden = rows.shape
    padding = zeros((-vocabulary % multiple, hidden), rows.dtype)
    padded = concat([rows, padding])
    _set_weights(program, _tied_tables(program, rows), padded)
    _set_weights(program, [parameter], transpose(padded))
    module = module_of(head)
    wide = gs.Variable(f"{module}/padded")
    head.outputs = [wide]
    bounds = [np.array([bound], np.int64) for bound in (0, vocabulary, -1)]
    add_node(graph, "Slice", f"{module}/vocabulary", [wide, *bounds], output=product)
    tidy(graph)
    return PassReport((head.name,))


@dataclass(frozen=True)
class PadVocabulary(Pass):
    """The head has a multiple of `multiple` outputs, of which those past the vocabulary are cut."""

    name: ClassVar = "pad-vocabulary"
    after: ClassVar = ("insert-strided-slice",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-5)
    multiple: int = 16

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}, expected 1 or more")

    def run(self, program: Program) -> PassReport:
        """Pad the product that makes the logits."""
        return pad_vocabulary(program, self.multiple)
