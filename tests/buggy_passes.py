"""Passes as their authors might get them wrong: each plausible, each caught by the kit."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport
from compiler.contracts.program import Phase, Program, tidy


def _producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    node = tensor.inputs[0] if tensor.inputs else None
    return node if node is not None and node.op == op else None


@dataclass(frozen=True)
class DropsABias(Pass):
    """Scales queries instead of scores; in every layer but the first it loses q's bias on the way.

    Mul(MatMul(x, W) + b, s) is MatMul(x, W) * s + b * s, and of the second half nothing is left.
    """

    name: ClassVar = "move-scale"
    contract: ClassVar = Contract.close(rtol=1e-4, atol=1e-5)

    def run(self, program: Program) -> PassReport:
        rewrites: list[str] = []
        for node in [n for n in program.graph.nodes if n.op == "Add"]:
            is_bias = node.name.endswith("self_attn.q_proj/Add")
            product = next((t for t in node.inputs if _producer(t, "MatMul") is not None), None)
            if not is_bias or product is None or "layers.0." in node.name:
                continue
            for reader in list(node.outputs[0].outputs):
                reader.inputs = [product if t is node.outputs[0] else t for t in reader.inputs]
            rewrites.append(node.name)
        tidy(program.graph)
        return PassReport(tuple(rewrites))


@dataclass(frozen=True)
class SlicesTheWrongRow(Pass):
    """The slice before the head, one row too early."""

    name: ClassVar = "slice-head"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill",)
    requires: ClassVar = ("fold-mask",)
    contract: ClassVar = Contract.changes("logits")
    changes_signature: ClassVar = True

    def run(self, program: Program) -> PassReport:
        graph = program.graph
        logits = next((t for t in graph.outputs if t.name == "logits"), None)
        head = None if logits is None else _producer(logits, "MatMul")
        if logits is None or head is None or logits.shape[1] == 1:
            return PassReport()
        valid = next(t for t in graph.inputs if t.name == "valid_length")
        row, kept = gs.Variable("lm_head/Sub"), gs.Variable("lm_head/Gather")
        two = gs.Constant("lm_head/Sub.1", np.array([2], np.int64))
        graph.nodes += [
            gs.Node("Sub", "lm_head/Sub", inputs=[valid, two], outputs=[row]),
            gs.Node("Gather", "lm_head/Gather", {"axis": 1}, [head.inputs[0], row], [kept]),
        ]
        head.inputs = [kept, head.inputs[1]]
        logits.shape = [1, 1, logits.shape[2]]
        tidy(graph)
        return PassReport((head.name,))

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        row = int(old_inputs["valid_length"][0]) - 1
        return {**old, "logits": old["logits"][:, row : row + 1]}


@dataclass(frozen=True)
class SlicesTheWrongAxis(Pass):
    """The rotary's second half taken from the heads, not from a head's features."""

    name: ClassVar = "fold-slice"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        rewrites: list[str] = []
        for node in [n for n in program.graph.nodes if n.op == "Slice"]:
            axes = node.inputs[3]
            if isinstance(axes, gs.Constant) and axes.values.tolist() == [3]:
                node.inputs[3] = gs.Constant(axes.name, np.array([2], np.int64))
                rewrites.append(node.name)
        return PassReport(tuple(rewrites))


@dataclass(frozen=True)
class WritesOneEpsilon(Pass):
    """Shares one constant between all norms, and so their epsilon."""

    name: ClassVar = "share-epsilon"
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-6)

    def run(self, program: Program) -> PassReport:
        rewrites: list[str] = []
        for root in [n for n in program.graph.nodes if n.op == "Sqrt"]:
            total = _producer(root.inputs[0], "Add")
            if total is None:
                continue
            for index, tensor in enumerate(total.inputs):
                if isinstance(tensor, gs.Constant) and tensor.values != np.float32(1e-6):
                    shared = np.array(1e-6, np.float32)
                    total.inputs[index] = gs.Constant(f"{total.name}.shared", shared)
                    rewrites.append(total.name)
        return PassReport(tuple(rewrites))


@dataclass(frozen=True)
class ScalesTwice(Pass):
    """Puts the scale of the scores on the queries, and leaves it on the scores."""

    name: ClassVar = "scale-queries"
    contract: ClassVar = Contract.close(rtol=1e-4, atol=1e-5)

    def run(self, program: Program) -> PassReport:
        graph = program.graph
        names = {node.name for node in graph.nodes}
        rewrites: list[str] = []
        for softmax in [n for n in graph.nodes if n.op == "Softmax"]:
            name = f"{softmax.name.rpartition('/')[0]}/scaled"
            total = _producer(softmax.inputs[0], "Add")
            if total is None or name in names:
                continue
            scaled = next((t for t in total.inputs if _producer(t, "Mul") is not None), None)
            if scaled is None:
                continue
            twice = gs.Variable(name)
            factor = gs.Constant(f"{name}.1", np.array(0.5, np.float32))
            graph.nodes.append(gs.Node("Mul", name, inputs=[scaled, factor], outputs=[twice]))
            total.inputs = [twice if t is scaled else t for t in total.inputs]
            rewrites.append(name)
        tidy(graph)
        return PassReport(tuple(rewrites))


@dataclass(frozen=True)
class RewritesForEver(Pass):
    """A Softmax gets an Identity in front at every run."""

    name: ClassVar = "add-identity"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        graph = program.graph
        made: list[str] = []
        for softmax in [n for n in graph.nodes if n.op == "Softmax"]:
            stem = f"{softmax.name}/Identity"
            name = f"{stem}_{sum(n.name.startswith(stem) for n in graph.nodes)}"
            copied = gs.Variable(name)
            graph.nodes.append(
                gs.Node("Identity", name, inputs=[softmax.inputs[0]], outputs=[copied])
            )
            softmax.inputs = [copied]
            made.append(name)
        tidy(graph)
        return PassReport(tuple(made))


CAUGHT: tuple[tuple[Pass, str], ...] = (
    (DropsABias(), "numbers"),
    (SlicesTheWrongRow(), "numbers"),
    (SlicesTheWrongAxis(), "structure"),
    (WritesOneEpsilon(), "numbers"),
    (ScalesTwice(), "numbers"),
    (RewritesForEver(), "repeat"),
)
