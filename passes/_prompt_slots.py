"""What belongs to one prompt of several: caches of its own, and the nodes that work on them.

    rows[N, K, d] -> Split -> rows of slot 0 -> CacheUpdate(past)       -> present
                           -> rows of slot 1 -> CacheUpdate(past.slot1) -> present.slot1

Slot 0 keeps the names of the one prompt that was there before.
"""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.program import Program
from compiler.contracts.slots import slot_name
from passes._match import add_node, module_of, replace_uses

# The axis that counts tokens: of what FusedAttention takes for queries, and of what it gives.
QUERY_AXIS = 2
ATTENDED_AXIS = 1


def shared_by(node: gs.Node, made: set[int], program: Program) -> list[gs.Tensor]:
    """What a node of one prompt takes of the rows of all."""
    held = {*program.weights, *program.aliases.values()}
    return [
        tensor
        for tensor in node.inputs
        if id(tensor) not in made and tensor.name not in held and isinstance(tensor, gs.Variable)
    ]


def taken_on(node: gs.Node, tensor: gs.Tensor) -> int:
    """The axis of a shared tensor on which a node of one prompt finds its row."""
    is_query = node.op == "FusedAttention" and node.inputs[0] is tensor
    return QUERY_AXIS if is_query else 0


class PromptSlots:
    """The parts of each prompt, made as they are asked for.

    Args:
        program: Of one prompt; what is made is added to it.
        apart: Its nodes of one prompt alone.
        batch: Number of prompts.
    """

    def __init__(self, program: Program, apart: Sequence[gs.Node], batch: int) -> None:
        self._program = program
        self._made = {id(tensor) for node in apart for tensor in node.outputs}
        self._batch = batch
        self._parts: dict[int, list[gs.Tensor]] = {}

    def split(self, tensor: gs.Tensor, axis: int) -> list[gs.Tensor]:
        """One row for each prompt of what holds the rows of all."""
        if id(tensor) not in self._parts:
            name = f"{tensor.name}/Split"
            sizes = gs.Constant(f"{name}.sizes", np.ones(self._batch, np.int64))
            parts = [gs.Variable(f"{name}.{slot}", tensor.dtype) for slot in range(self._batch)]
            attrs: dict[str, object] = {"axis": axis}
            node = gs.Node("Split", name, attrs, inputs=[tensor, sizes], outputs=list(parts))
            self._program.graph.nodes.append(node)
            self._parts[id(tensor)] = list(parts)
        return self._parts[id(tensor)]

    def caches(self, past: gs.Tensor) -> list[gs.Tensor]:
        """An input of the graph for each prompt."""
        if id(past) not in self._parts:
            others = [_like(past, slot) for slot in range(1, self._batch)]
            _put_behind(self._program.graph.inputs, past, others)
            self._parts[id(past)] = [past, *others]
        return self._parts[id(past)]

    def replicate(self, node: gs.Node) -> None:
        """One of a node for each prompt; the node itself becomes that of slot 0."""
        held = self._program.aliases
        shared = {id(tensor) for tensor in shared_by(node, self._made, self._program)}
        given = [
            self.split(tensor, taken_on(node, tensor))
            if id(tensor) in shared
            else self.caches(tensor)
            if tensor.name in held.values()
            else self._parts.get(id(tensor), [tensor] * self._batch)
            for tensor in node.inputs
        ]
        for tensor in node.outputs:
            others = [_like(tensor, slot) for slot in range(1, self._batch)]
            self._parts[id(tensor)] = [tensor, *others]
        for slot in range(1, self._batch):
            self._program.graph.nodes.append(
                gs.Node(
                    node.op,
                    slot_name(node.name, slot),
                    dict(node.attrs),
                    inputs=[tensors[slot] for tensors in given],
                    outputs=[self._parts[id(tensor)][slot] for tensor in node.outputs],
                    domain=node.domain,
                )
            )
        node.inputs = [tensors[0] for tensors in given]

    def give(self, present: gs.Tensor) -> None:
        """Every prompt's cache is an output, and the input that it is written to."""
        aliases, parts = self._program.aliases, self._parts[id(present)]
        _put_behind(self._program.graph.outputs, present, parts[1:])
        for slot, tensor in enumerate(parts):
            aliases[tensor.name] = slot_name(aliases[present.name], slot)

    def join(self, attention: gs.Node) -> str:
        """The rows of all prompts behind attention; the name of what joins them."""
        attended = attention.outputs[0]
        readers = list(attended.outputs)
        joined = add_node(
            self._program.graph,
            "Concat",
            f"{module_of(attention)}/Prompts",
            self._parts[id(attended)],
            attrs={"axis": ATTENDED_AXIS},
        )
        replace_uses(self._program.graph, attended, joined, readers=readers)
        return joined.name


def _like(tensor: gs.Tensor, slot: int) -> gs.Variable:
    shape = None if tensor.shape is None else list(tensor.shape)
    return gs.Variable(slot_name(tensor.name, slot), tensor.dtype, shape)


def _put_behind(tensors: list[gs.Tensor], one: gs.Tensor, new: Sequence[gs.Tensor]) -> None:
    """Insert `new` behind `one`; graphsurgeon's `==` compares names alone."""
    index = next(index for index, tensor in enumerate(tensors) if tensor is one)
    tensors[index + 1 : index + 1] = new
