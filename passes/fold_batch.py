"""The batch folded into the sequence: one call of decode takes a token of each of N prompts.

    input_ids[1, 1]                             input_ids[1, N], a column for each prompt
    past_length[1], valid_length[1]             past_length[N], valid_length[N]
    rows  = embedding, norms, linears, MLP   -> the same nodes over [1, N, hidden]
    cache = CacheUpdate(past, rows, ..)         Split(rows); a CacheUpdate for each prompt
    FusedAttention(q, cache, ..)                Split(q); a FusedAttention for each; Concat
    logits[1, 1, V]                             logits[1, N, V]

What treats rows independently runs once over all of them, so that weights are read once for N
tokens. Positions go by row; caches, and what stands between them and attention, are replicated:
slot 0 keeps their names, the others have `.slot1` and so on. A prompt that takes no part in a call
has valid_length 0: nothing is written to its caches, and its row of logits means nothing.

Declines, with the node, a graph in which a cache reaches anything but a FusedAttention, an operator
that is not known to treat rows independently, and rows on an axis where attention has none. With
one prompt there is nothing to fold. Numerically a product of N rows may sum in another order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import Phase, Program, tidy
from compiler.contracts.slots import slot_name
from passes._prompt_slots import ATTENDED_AXIS, PromptSlots, shared_by, taken_on
from passes._row_axes import Rows, follow

# The axis that counts tokens, of the graph's inputs.
_INPUTS: Mapping[str, int] = {"input_ids": 1, "past_length": 0, "valid_length": 0}
_LOGITS_AXIS = 1
# What may stand between a cache and attention, and what makes rows as a cache stores them.
_CACHED = ("CacheUpdate", "Cast", "FusedAttention", "WidenedCache")
_STORING = ("Cast", "QuantizedRows")


@dataclass(frozen=True)
class _Match:
    """What is replicated, and where rows lie in the rest.

    Attributes:
        apart: Nodes of one prompt alone, in graph order.
        rows: The axes of all others.
    """

    apart: tuple[gs.Node, ...]
    rows: Rows


def _behind_caches(program: Program) -> list[gs.Node] | Skip:
    """Nodes that read a cache, directly or through others, and those that make its rows."""
    held = {t.name for t in program.graph.inputs if t.name in program.aliases.values()}
    found: list[gs.Node] = []
    ids: set[int] = set()
    reached = {id(tensor) for tensor in program.graph.inputs if tensor.name in held}
    for node in program.graph.nodes:
        if not any(id(tensor) in reached for tensor in node.inputs):
            continue
        if node.op not in _CACHED:
            return Skip(node.name, "it reads a cache and is no FusedAttention")
        found.append(node)
        ids.add(id(node))
        if node.op != "FusedAttention":
            reached |= {id(tensor) for tensor in node.outputs}
    storing: list[gs.Node] = []
    writing = {id(node) for node in found if node.op == "CacheUpdate"}
    for node in reversed(program.graph.nodes):
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        is_alone = bool(readers) and all(id(reader) in writing for reader in readers)
        if node.op in _STORING and id(node) not in ids and is_alone:
            storing.append(node)
            writing.add(id(node))
    return [*reversed(storing), *found]


def _match(program: Program) -> _Match | Skip:
    inputs = {tensor.name: tensor for tensor in program.graph.inputs}
    if not program.aliases or any(name not in inputs for name in _INPUTS):
        return Skip("graph", "it has no static caches: plan-kv-cache declined")
    if any(inputs[name].shape[axis] != 1 for name, axis in _INPUTS.items()):
        return Skip("input_ids", "a call takes several tokens already")
    apart = _behind_caches(program)
    if isinstance(apart, Skip):
        return apart
    rows = Rows(
        program,
        axes={id(inputs[name]): axis for name, axis in _INPUTS.items()},
        ended={id(node) for node in apart},
        wanted={id(t): taken_on(node, t) for node, t in _all_shared(program, apart)},
    )
    for node in apart:
        if node.op == "FusedAttention":
            rows.axes[id(node.outputs[0])] = ATTENDED_AXIS
    problem = follow(rows)
    return problem or _misplaced(program, apart, rows) or _Match(tuple(apart), rows)


def _all_shared(program: Program, apart: Sequence[gs.Node]) -> list[tuple[gs.Node, gs.Tensor]]:
    """Nodes of one prompt, and what each takes of the rows of all."""
    made = {id(tensor) for node in apart for tensor in node.outputs}
    return [(node, tensor) for node in apart for tensor in shared_by(node, made, program)]


def _misplaced(program: Program, apart: Sequence[gs.Node], rows: Rows) -> Skip | None:
    """Rows that are not where the operators of one prompt, or the caller, look for them."""
    for node, tensor in _all_shared(program, apart):
        axis, wanted = rows.axis(tensor), taken_on(node, tensor)
        if axis != wanted:
            return Skip(node.name, f"the rows of {tensor.name} are on axis {axis}, not {wanted}")
    for tensor in program.graph.outputs:
        if tensor.name not in program.aliases and rows.axis(tensor) != _LOGITS_AXIS:
            return Skip(tensor.name, "it is an output, and not by row")
    return None


def fold_batch(program: Program, batch: int) -> PassReport:
    """Fold `batch` prompts into the decode graph of one."""
    if batch == 1:
        return PassReport()
    match = _match(program)
    if isinstance(match, Skip):
        return PassReport(skips=(match,))
    graph = program.graph
    for node, shape, axis in match.rows.reshapes:
        wide = np.array([batch if i == axis else size for i, size in enumerate(shape)], np.int64)
        node.inputs[1] = gs.Constant(f"{node.name}.wide", wide)
    for tensor in graph.inputs:
        if tensor.name in _INPUTS:
            tensor.shape = [
                batch if axis == _INPUTS[tensor.name] else size
                for axis, size in enumerate(tensor.shape)
            ]
    presents = [tensor for tensor in graph.outputs if tensor.name in program.aliases]
    for tensor in graph.outputs:
        if tensor.name not in program.aliases:
            tensor.shape = [tensor.shape[0], batch, *tensor.shape[2:]]
    slots = PromptSlots(program, match.apart, batch)
    for node in match.apart:
        slots.replicate(node)
    for present in presents:
        slots.give(present)
    attentions = [node for node in match.apart if node.op == "FusedAttention"]
    names = tuple(slots.join(node) for node in attentions)
    tidy(graph)
    return PassReport(names)


@dataclass(frozen=True)
class FoldBatch(Pass):
    """A decode graph of one prompt becomes one of `batch` prompts, each with caches of its own."""

    name: ClassVar = "fold-batch"
    phases: ClassVar[tuple[Phase, ...]] = ("decode",)
    requires: ClassVar = ("fuse-attention",)
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-gate-up",
        "fuse-qkv",
        "fuse-rms-norm",
        "fuse-rotary",
        "fuse-silu-mul",
        "pad-vocabulary",
        "eliminate-dead",
        "cast-dtype",
        "annotate-int8-qdq",
        "store-weights",
        "store-kv-cache",
    )
    contract: ClassVar = Contract.close(rtol=1e-4, atol=1e-5)
    changes_signature: ClassVar = True
    batch: int = 2

    def __post_init__(self) -> None:
        """Refuse no prompts."""
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected 1 or more")

    def run(self, program: Program) -> PassReport:
        """Fold all of the graph, or nothing of it."""
        return fold_batch(program, self.batch)

    def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """One prompt's inputs for every prompt."""
        del program
        adapted = dict(old)
        for name, array in old.items():
            if name in _INPUTS:
                adapted[name] = np.concatenate([array] * self.batch, axis=_INPUTS[name])
            else:
                adapted |= {slot_name(name, slot): array for slot in range(self.batch)}
        return adapted

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        """What one prompt gives, for every prompt."""
        del old_inputs
        adapted = dict(old)
        for name, array in old.items():
            if name in program.aliases:
                adapted |= {slot_name(name, slot): array for slot in range(self.batch)}
            else:
                adapted[name] = np.concatenate([array] * self.batch, axis=_LOGITS_AXIS)
        return adapted
