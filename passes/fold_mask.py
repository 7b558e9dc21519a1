"""The mask's arithmetic becomes a static form driven by two lengths.

    attention_mask[1, past + T], position_ids[1, T] -> ... -> Where(allowed, 0, min) -> mask
 -> past_length[1], valid_length[1]
    mask = CausalMask <window> (columns, past_length, valid_length)
    position_ids = past_length + [0 .. T - 1]
    ReduceSum(attention_mask), on which rotary frequencies may depend = past_length + valid_length

Row i may see column j where j <= past + i and j < past + valid: causal, with right padding; in a
layer with a sliding window W only where j > past + i - W as well. Each mask of a graph has its own
window; 0 is none, and so is a window that no row of the context reaches.

Masks and lengths are recognised by what they compute, not by how an exporter spells it: their
arithmetic is evaluated on several lengths and must equal the closed form everywhere. Declines, with
the first entry that differs, anything else, and a graph that reads the attention mask otherwise.
Domain: attention masks that are a prefix of ones, positions past + [0 .. T - 1].

Blocked entries keep the value that the graph had, a finite one, so that a row that sees nothing
(padding past the window's edge) is a mean and not NaN. A mask in float16 blocks with no less than
-32768: its lowest value and a negative score would overflow to -inf, and a row of those is NaN;
half of it leaves room, and its exponential is zero all the same. Exact: a blocked entry's weight in
the softmax is zero either way, and the others are the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._mask_arithmetic import (
    CACHE_PREFIX,
    MASK_INPUT,
    POSITIONS_INPUT,
    MaskForm,
    lengths,
    recognise_mask,
)
from passes._match import add_node, constant, producer, replace_uses

CAUSAL_MASK = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    CausalMask <tokens, window, blocked> (columns, past_length, valid_length) => (mask)
    {{
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        last_axis = Constant <value_ints: ints = [-1]> ()
        open = Constant <value_float: float = 0.0> ()
        closed = Constant <value_float: float = @blocked> ()
        count = Constant <value_int: int = @tokens> ()
        size = Constant <value_int: int = @window> ()
        offsets = Range (zero, count, one)
        row = Add (offsets, past_length)
        rows = Unsqueeze (row, last_axis)
        filled = Add (past_length, valid_length)
        causal = LessOrEqual (columns, rows)
        real = Less (columns, filled)
        seen = And (causal, real)
        edge = Sub (rows, size)
        inside = Greater (columns, edge)
        has_none = Equal (size, zero)
        near = Or (inside, has_none)
        allowed = And (seen, near)
        mask = Where (allowed, open, closed)
    }}
    """
)


@dataclass(frozen=True)
class _Readers:
    """What the attention mask goes into: masks, lengths (with ranks), by `other` something else."""

    masks: Sequence[gs.Tensor]
    lengths: Sequence[tuple[gs.Tensor, int]]
    other: gs.Node | None


def _readers(program: Program, attention_mask: gs.Tensor) -> _Readers:
    """Walk from the attention mask to the scores it is added to, and to lengths."""
    graph = program.graph
    rank_of = {id(tensor): rank for tensor, rank in lengths(program)}
    dependent = {id(attention_mask)}
    masks: dict[int, gs.Tensor] = {}
    found: list[tuple[gs.Tensor, int]] = []
    others: dict[int, gs.Node] = {}
    for node in graph.nodes:
        touched = [tensor for tensor in node.inputs if id(tensor) in dependent]
        if not touched:
            continue
        if id(node.outputs[0]) in rank_of:
            found.append((node.outputs[0], rank_of[id(node.outputs[0])]))
        elif node.op == "Add" and len(touched) == 1 and not _is_integer(node):
            masks[id(touched[0])] = touched[0]
        else:
            dependent.update(id(tensor) for tensor in node.outputs)
            # Where the way here begins: what is named when it ends in an output.
            origin = next((others[id(t)] for t in touched if id(t) in others), node)
            others.update((id(tensor), origin) for tensor in node.outputs)
    escaped = next((others[id(t)] for t in graph.outputs if id(t) in others), None)
    return _Readers(list(masks.values()), found, escaped)


def _is_integer(node: gs.Node) -> bool:
    """Whether an Add computes lengths: one of its operands is an integer constant or a shape."""
    kinds = [value.dtype.kind for value in map(constant, node.inputs) if value is not None]
    makers = [producer(tensor) for tensor in node.inputs]
    return "i" in kinds or any(m is not None and m.op in ("Shape", "Squeeze") for m in makers)


def fold_mask(program: Program) -> PassReport:
    """Replace every mask and length of the graph, or none."""
    graph = program.graph
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    if MASK_INPUT not in inputs or POSITIONS_INPUT not in inputs:
        return PassReport(
            skips=(Skip("graph", "there is no attention_mask and position_ids input"),)
        )
    found = _readers(program, inputs[MASK_INPUT])
    if found.other is not None:
        reason = f"{found.other.name} makes neither a mask of it nor its length, past + valid"
        return PassReport(skips=(Skip(MASK_INPUT, reason),))
    if not found.masks:
        return PassReport(skips=(Skip(MASK_INPUT, "no scores are added to a mask made of it"),))
    forms = [recognise_mask(mask, program) for mask in found.masks]
    declined = [
        Skip(mask.name, reason)
        for mask, reason in zip(found.masks, forms, strict=True)
        if isinstance(reason, str)
    ]
    if declined:
        return PassReport(skips=tuple(declined))

    past_length = gs.Variable("past_length", dtype=np.int64, shape=[1])
    valid_length = gs.Variable("valid_length", dtype=np.int64, shape=[1])
    positions = _position_ids(graph, past_length, program.tokens)
    replace_uses(graph, inputs[POSITIONS_INPUT], positions)
    columns = _columns(graph, program.tokens)
    both = [past_length, valid_length]
    for index, (mask, form) in enumerate(zip(found.masks, forms, strict=True)):
        assert isinstance(form, MaskForm), "declined above"
        suffix = f"_{index}" if index else ""
        replace_uses(graph, mask, _causal_mask(graph, [columns, *both], form, suffix))
    for index, (tensor, rank) in enumerate(found.lengths):
        suffix = f"_{index}" if index else ""
        replace_uses(graph, tensor, _length(graph, both, rank, suffix))
    program.functions[CAUSAL_MASK.name] = CAUSAL_MASK
    replaced = ("input_ids", MASK_INPUT, POSITIONS_INPUT)
    kept = [tensor for tensor in graph.inputs if tensor.name not in replaced]
    graph.inputs = [inputs["input_ids"], past_length, valid_length, *kept]
    tidy(graph)
    folded = (*found.masks, *(tensor for tensor, _ in found.lengths))
    return PassReport(tuple(tensor.name for tensor in folded))


def _causal_mask(
    graph: gs.Graph, operands: Sequence[gs.Tensor], form: MaskForm, suffix: str
) -> gs.Tensor:
    """The mask in the type and with the axes that the graph had it in."""
    folded = add_node(
        graph,
        "CausalMask",
        f"model.mask/CausalMask{suffix}",
        operands,
        attrs={"tokens": form.tokens, "window": form.window, "blocked": form.blocked},
        is_fused=True,
    )
    if form.dtype != np.float32:
        to: dict[str, object] = {"to": onnx.helper.np_dtype_to_tensor_dtype(form.dtype)}
        folded = add_node(graph, "Cast", f"model.mask/Cast{suffix}", [folded], attrs=to)
    if form.rank == 2:
        return folded
    axes = np.arange(form.rank - 2, dtype=np.int64)
    return add_node(graph, "Unsqueeze", f"model.mask/Unsqueeze{suffix}", [folded, axes])


def _length(graph: gs.Graph, operands: Sequence[gs.Tensor], rank: int, suffix: str) -> gs.Tensor:
    """past_length + valid_length, with the axes that the graph had it in."""
    filled = add_node(graph, "Add", f"model.mask/filled{suffix}", operands)
    if rank == 1:
        return filled
    ones = np.ones(rank, np.int64)
    return add_node(graph, "Reshape", f"model.mask/Reshape{suffix}", [filled, ones])


def _position_ids(graph: gs.Graph, past_length: gs.Tensor, tokens: int) -> gs.Tensor:
    """past_length + [0 .. T - 1], as [1, T]."""
    bounds = [np.array(bound, np.int64) for bound in (0, tokens, 1)]
    offsets = add_node(graph, "Range", "model.mask/offsets", bounds)
    rows = add_node(graph, "Add", "model.mask/rows", [past_length, offsets])
    axis = np.array([0], np.int64)
    return add_node(graph, "Unsqueeze", "model.mask/position_ids", [rows, axis])


def _columns(graph: gs.Graph, tokens: int) -> gs.Tensor:
    """[0 .. past + T - 1], its length read off a cache's past axis."""
    cache = next(tensor for tensor in graph.inputs if tensor.name.startswith(CACHE_PREFIX))
    axis: dict[str, object] = {"start": 2, "end": 3}
    past = add_node(graph, "Shape", "model.mask/past_axis", [cache], attrs=axis)
    length = add_node(graph, "Add", "model.mask/length", [past, np.array([tokens], np.int64)])
    only = np.array([0], np.int64)
    scalar = add_node(graph, "Squeeze", "model.mask/length_scalar", [length, only])
    first, step = np.array(0, np.int64), np.array(1, np.int64)
    return add_node(graph, "Range", "model.mask/columns", [first, scalar, step])


@dataclass(frozen=True)
class FoldMask(Pass):
    """attention_mask, position_ids -> past_length, valid_length."""

    name: ClassVar = "fold-mask"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.exact()
    changes_signature: ClassVar = True

    def run(self, program: Program) -> PassReport:
        """Fold each mask that is causal with right padding; decline others, with the entry."""
        return fold_mask(program)

    def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """Read the two lengths off the mask."""
        mask, positions = old[MASK_INPUT][0], old[POSITIONS_INPUT][0]
        past = len(mask) - program.tokens
        valid = int(mask.sum()) - past
        if not (mask[: past + valid] == 1).all() or not 1 <= valid <= program.tokens:
            raise PassError(
                "the attention mask is not a prefix of ones",
                where="fold-mask: attention_mask",
                hint="pad on the right",
            )
        if not np.array_equal(positions, np.arange(past, past + program.tokens)):
            raise PassError(
                f"positions are not {past} .. {past + program.tokens - 1}",
                where="fold-mask: position_ids",
            )
        rest = {k: v for k, v in old.items() if k not in ("attention_mask", "position_ids")}
        return {
            **rest,
            "past_length": np.array([past], np.int64),
            "valid_length": np.array([valid], np.int64),
        }
