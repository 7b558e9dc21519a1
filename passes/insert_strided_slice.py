"""Only the wanted token's hidden state reaches the head, in prefill.

    lm_head(h[1, T, H]) -> logits[1, T, V]
 -> lm_head(h[1, 1, H]) -> logits[1, 1, V]

`last_valid` takes the row before `valid_length`, so that right padding is never asked; `last` takes
h[:, -1:, :], for windows that are always full. It stands after the final norm. Declines where the
head already reads one token. The kept row's value is the same sum, over fewer rows of a product.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import Phase, Program, tidy
from passes._match import add_node, head_product

Position = Literal["last", "last_valid"]

_INT64_MAX = np.iinfo(np.int64).max


def _kept_row(program: Program, hidden: gs.Tensor, position: str) -> gs.Tensor:
    graph = program.graph
    if position == "last":
        bounds = [np.array([value], np.int64) for value in (-1, _INT64_MAX, 1)]
        return add_node(graph, "Slice", "lm_head/Slice", [hidden, *bounds])
    valid_length = next(tensor for tensor in graph.inputs if tensor.name == "valid_length")
    row = add_node(graph, "Sub", "lm_head/last_valid", [valid_length, np.array([1], np.int64)])
    return add_node(graph, "Gather", "lm_head/Gather", [hidden, row], attrs={"axis": 1})


def insert_strided_slice(program: Program, position: Position) -> PassReport:
    """Put the slice before the head."""
    graph = program.graph
    head = head_product(graph)
    if head is None:
        return PassReport(skips=(Skip("logits", "no MatMul makes them"),))
    logits = next(tensor for tensor in graph.outputs if tensor.name == "logits")
    if logits.shape[1] == 1:
        return PassReport(skips=(Skip(head.name, "it reads one token already"),))
    if position == "last_valid" and all(t.name != "valid_length" for t in graph.inputs):
        reason = "there is no valid_length input: fold-mask declined"
        return PassReport(skips=(Skip(head.name, reason),))
    kept = _kept_row(program, head.inputs[0], position)
    head.inputs = [kept, head.inputs[1]]
    logits.shape = [logits.shape[0], 1, logits.shape[2]]
    program.logits_of = position
    tidy(graph)
    return PassReport((head.name,))


@dataclass(frozen=True)
class InsertStridedSlice(Pass):
    """lm_head(h[1, T, H]) -> lm_head(h[1, 1, H]): only the wanted token's logits, in prefill."""

    name: ClassVar = "insert-strided-slice"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill",)
    after: ClassVar = ("fold-mask",)
    contract: ClassVar = Contract.changes("logits")
    changes_signature: ClassVar = True
    position: Position = "last_valid"

    def required(self) -> tuple[str, ...]:
        """`last_valid` reads the valid_length that fold-mask makes."""
        return ("fold-mask",) if self.position == "last_valid" else ()

    def run(self, program: Program) -> PassReport:
        """Insert the slice before the product that makes the logits."""
        return insert_strided_slice(program, self.position)

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        """The row of the full logits that the slice keeps; the caches are as they were."""
        del program
        row = -1 if self.position == "last" else int(old_inputs["valid_length"][0]) - 1
        return {**old, "logits": old["logits"][:, row : row + 1 or None, :]}
