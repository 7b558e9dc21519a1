"""The mask's arithmetic becomes a static form driven by two lengths.

    attention_mask[1, past + T], position_ids[1, T] -> ... -> Where(allowed, 0, min) -> mask
 -> past_length[1], valid_length[1]; mask = CausalMask(columns, past_length, valid_length)
    position_ids = past_length + [0 .. T - 1]

Row i may see column j where j <= past + i and j < past + valid: causal, with right padding. Blocked
entries keep the value that the graph had (a finite one), so that no row is all NaN.

A mask is recognised by what it computes, not by how an exporter spells it: its arithmetic is
evaluated on several lengths and must equal the closed form everywhere. Declines, with the first
entry that differs, anything else. Domain: attention masks that are a prefix of ones, positions past
+ [0 .. T - 1]. Exact: the same two values in the same places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._match import add_node, ancestors, producer, replace_uses

_LOWEST = float(np.finfo(np.float32).min)
# A mask is evaluated up to about this many entries at once.
_ENTRIES = 1 << 25
CAUSAL_MASK = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    CausalMask <tokens, blocked> (columns, past_length, valid_length) => (mask)
    {{
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        last_axis = Constant <value_ints: ints = [-1]> ()
        open = Constant <value_float: float = 0.0> ()
        closed = Constant <value_float: float = @blocked> ()
        count = Constant <value_int: int = @tokens> ()
        offsets = Range (zero, count, one)
        row = Add (offsets, past_length)
        rows = Unsqueeze (row, last_axis)
        filled = Add (past_length, valid_length)
        causal = LessOrEqual (columns, rows)
        real = Less (columns, filled)
        allowed = And (causal, real)
        mask = Where (allowed, open, closed)
    }}
    """
)


def _mask_tensors(graph: gs.Graph, attention_mask: gs.Tensor) -> list[gs.Tensor]:
    """The tensors that depend on the attention mask and are added to scores."""
    dependent: set[int] = {id(attention_mask)}
    found: dict[int, gs.Tensor] = {}
    for node in graph.nodes:
        touched = [tensor for tensor in node.inputs if id(tensor) in dependent]
        if not touched:
            continue
        is_score_sum = node.op == "Add" and len(touched) == 1 and not _is_integer(node)
        if not is_score_sum:
            dependent.update(id(tensor) for tensor in node.outputs)
            continue
        found[id(touched[0])] = touched[0]
    return list(found.values())


def _is_integer(node: gs.Node) -> bool:
    """Whether an Add computes lengths: one of its operands is an integer constant or a shape."""
    kinds = [tensor.values.dtype.kind for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    makers = [producer(tensor) for tensor in node.inputs]
    return "i" in kinds or any(m is not None and m.op in ("Shape", "Squeeze") for m in makers)


def _mask_model(mask: gs.Tensor) -> tuple[onnx.ModelProto, list[gs.Tensor]]:
    """The arithmetic of one mask as a model of its own, and the graph inputs that it reads."""
    nodes = ancestors(mask)
    inputs: dict[int, gs.Tensor] = {
        id(tensor): tensor
        for node in nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Variable) and not tensor.inputs
    }
    graph = gs.Graph(nodes=nodes, inputs=list(inputs.values()), outputs=[mask], opset=OPSET)
    proto = gs.export_onnx(graph, do_type_check=False)
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return proto, list(inputs.values())


def _feeds(inputs: Sequence[gs.Tensor], *, past: int, valid: int, tokens: int) -> Arrays:
    feeds: dict[str, np.ndarray] = {}
    for tensor in inputs:
        if tensor.name == "attention_mask":
            feeds[tensor.name] = (np.arange(past + tokens) < past + valid).astype(np.int64)[None]
        elif tensor.name == "position_ids":
            feeds[tensor.name] = np.arange(past, past + tokens, dtype=np.int64)[None]
        else:
            shape = [axis if isinstance(axis, int) else past for axis in tensor.shape]
            feeds[tensor.name] = np.zeros(shape, np.float32)
    return feeds


def _closed_form(*, past: int, valid: int, tokens: int) -> np.ndarray:
    columns = np.arange(past + tokens)[None, :]
    rows = past + np.arange(tokens)[:, None]
    return (columns <= rows) & (columns < past + valid)


def _lengths(tokens: int, context: int) -> list[tuple[int, int]]:
    """(past, valid) to evaluate: short, and at the cache's end, where a sliding window shows."""
    last = min(context - tokens, _ENTRIES // tokens)
    pasts = {0, 1, 5, max(0, last)}
    return sorted((past, valid) for past in pasts for valid in {1, (tokens + 1) // 2, tokens})


def _recognise(mask: gs.Tensor, program: Program) -> tuple[float, int] | str:
    """(blocked value, rank) of a causal mask with right padding; or why it is none."""
    tokens = program.tokens
    proto, inputs = _mask_model(mask)
    unexpected = [
        tensor.name
        for tensor in inputs
        if tensor.name not in ("attention_mask", "position_ids")
        and not tensor.name.startswith("past_key_values.")
    ]
    if unexpected:
        return f"it depends on {unexpected[0]}"
    session = ReferenceEvaluator(proto)
    low, high, rank = np.inf, -np.inf, 0
    for past, valid in _lengths(tokens, program.context):
        feeds = _feeds(inputs, past=past, valid=valid, tokens=tokens)
        with np.errstate(all="ignore"):  # infinities are found below
            value, *_ = (np.asarray(result) for result in session.run(None, dict(feeds)))
        allowed = _closed_form(past=past, valid=valid, tokens=tokens)
        if value.shape[-2:] != allowed.shape or value.size != allowed.size:
            return f"its shape is {value.shape} for {past} past tokens, expected {allowed.shape}"
        rank = value.ndim
        flat = value.reshape(allowed.shape)
        wrong = np.argwhere((flat == 0) != allowed)
        if len(wrong):
            row, column = wrong[0]
            expected = "open" if allowed[row, column] else "blocked"
            return (
                f"with {past} past and {valid} valid tokens, row {row} column {column} is "
                f"{flat[row, column]:g} where a causal mask is {expected}"
            )
        blocked = flat[~allowed]
        low, high = min(low, blocked.min(initial=low)), max(high, blocked.max(initial=high))
    if low > high:  # a mask of one row blocks nothing until the cache is static
        return _LOWEST, rank
    if low != high or not np.isfinite(low):
        return f"blocked entries go from {low:g} to {high:g}, expected one finite value"
    return float(low), rank


def fold_mask(program: Program) -> PassReport:
    """Replace every mask of the graph, or none."""
    graph, tokens = program.graph, program.tokens
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    if "attention_mask" not in inputs or "position_ids" not in inputs:
        return PassReport(
            skips=(Skip("graph", "there is no attention_mask and position_ids input"),)
        )
    masks = _mask_tensors(graph, inputs["attention_mask"])
    if not masks:
        return PassReport(
            skips=(Skip("attention_mask", "no scores are added to a mask made of it"),)
        )
    recognised = [_recognise(mask, program) for mask in masks]
    declined = [
        Skip(mask.name, reason)
        for mask, reason in zip(masks, recognised, strict=True)
        if isinstance(reason, str)
    ]
    if declined:
        return PassReport(skips=tuple(declined))

    forms = [form for form in recognised if not isinstance(form, str)]
    past_length = gs.Variable("past_length", dtype=np.int64, shape=[1])
    valid_length = gs.Variable("valid_length", dtype=np.int64, shape=[1])
    replace_uses(graph, inputs["position_ids"], _position_ids(graph, past_length, tokens))
    columns = _columns(graph, tokens)
    for index, (mask, (blocked, rank)) in enumerate(zip(masks, forms, strict=True)):
        suffix = f"_{index}" if index else ""
        folded = add_node(
            graph,
            "CausalMask",
            f"model.mask/CausalMask{suffix}",
            [columns, past_length, valid_length],
            attrs={"tokens": tokens, "blocked": blocked},
            is_fused=True,
        )
        if rank > 2:
            axes = np.arange(rank - 2, dtype=np.int64)
            folded = add_node(graph, "Unsqueeze", f"model.mask/Unsqueeze{suffix}", [folded, axes])
        replace_uses(graph, mask, folded)
    program.functions[CAUSAL_MASK.name] = CAUSAL_MASK
    replaced = ("input_ids", "attention_mask", "position_ids")
    kept = [tensor for tensor in graph.inputs if tensor.name not in replaced]
    graph.inputs = [inputs["input_ids"], past_length, valid_length, *kept]
    tidy(graph)
    return PassReport(tuple(mask.name for mask in masks))


def _position_ids(graph: gs.Graph, past_length: gs.Tensor, tokens: int) -> gs.Tensor:
    """past_length + [0 .. T - 1], as [1, T]."""
    bounds = [np.array(bound, np.int64) for bound in (0, tokens, 1)]
    offsets = add_node(graph, "Range", "model.mask/offsets", bounds)
    rows = add_node(graph, "Add", "model.mask/rows", [past_length, offsets])
    axis = np.array([0], np.int64)
    return add_node(graph, "Unsqueeze", "model.mask/position_ids", [rows, axis])


def _columns(graph: gs.Graph, tokens: int) -> gs.Tensor:
    """[0 .. past + T - 1], its length read off a cache's past axis."""
    cache = next(tensor for tensor in graph.inputs if tensor.name.startswith("past_key_values."))
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
        mask, positions = old["attention_mask"][0], old["position_ids"][0]
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
