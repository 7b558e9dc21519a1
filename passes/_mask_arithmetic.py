"""What arithmetic on the attention mask computes, found by evaluating it at several lengths.

A mask is causal with right padding and perhaps a window; a length is the tokens that a call has
seen, past + valid. Both are compared with their closed form entry by entry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from compiler.contracts.pass_base import Arrays
from compiler.contracts.program import OPSET, Program
from passes._match import ancestors, constant

MASK_INPUT, POSITIONS_INPUT, CACHE_PREFIX = "attention_mask", "position_ids", "past_key_values."
_LOWEST = float(np.finfo(np.float32).min)
# The sum with any score over this, too, is finite in float16; see fold-mask.
_LOWEST_IN_HALF = -32768.0
# A mask is evaluated up to about this many entries at once.
_ENTRIES = 1 << 22


@dataclass(frozen=True)
class MaskForm:
    """A recognised mask: rows, window (0: none), what blocks, and how the graph holds it."""

    tokens: int
    blocked: float
    window: int
    rank: int
    dtype: np.dtype


def recognise_mask(mask: gs.Tensor, program: Program) -> MaskForm | str:
    """The form of a causal mask with right padding; or why it is none."""
    tokens = program.tokens
    proto, inputs = _model([mask])
    unexpected = [tensor.name for tensor in inputs if not _is_known(tensor)]
    if unexpected:
        return f"it depends on {unexpected[0]}"
    session = ReferenceEvaluator(proto)
    pasts = _pasts(mask, tokens, program.context)

    def entries(past: int, valid: int) -> np.ndarray | str:
        value = _run(session, inputs, past=past, valid=valid, tokens=tokens)[0]
        if value.shape[-2:] == (tokens, past + tokens) and value.size == tokens * (past + tokens):
            return value
        expected = f"expected {(tokens, past + tokens)}"
        return f"its shape is {value.shape} for {past} past tokens, {expected}"

    farthest = entries(pasts[-1], tokens)
    window = 0 if isinstance(farthest, str) else _window(farthest.reshape(tokens, -1)[-1])
    low, high = np.inf, -np.inf
    value = farthest
    for past, valid in ((p, v) for p in pasts for v in sorted({1, (tokens + 1) // 2, tokens})):
        value = entries(past, valid)
        if isinstance(value, str):
            return value
        allowed = _closed_form(past=past, valid=valid, tokens=tokens, window=window)
        flat = value.reshape(allowed.shape)
        wrong = (flat == 0) != allowed
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            kind = "a causal mask" if not window else f"a causal mask with a window of {window}"
            expected = "open" if allowed[row, column] else "blocked"
            return (
                f"with {past} past and {valid} valid tokens, row {row} column {column} is "
                f"{flat[row, column]:g} where {kind} is {expected}"
            )
        blocked = flat[~allowed]
        if blocked.size:
            low, high = min(low, float(blocked.min())), max(high, float(blocked.max()))
    assert isinstance(value, np.ndarray), "there is a length to evaluate"
    if low > high:  # a mask of one row blocks nothing until the cache is static
        low = high = _LOWEST
    if low != high or not np.isfinite(low):
        return f"blocked entries go from {low:g} to {high:g}, expected one finite value"
    floor = _LOWEST_IN_HALF if value.dtype == np.float16 else _LOWEST
    return MaskForm(tokens, max(float(low), floor), window, value.ndim, value.dtype)


def _pasts(mask: gs.Tensor, tokens: int, context: int) -> list[int]:
    """Pasts to evaluate, rising: short ones, and the cache's end, where a sliding window shows.

    The end is the last token's, so that rows of padding, which come after it, are as they were.
    Where it is too far to evaluate, a window is some integer in the mask's arithmetic: then the
    mask is evaluated just past each of those.
    """
    end = max(0, context - 1)
    last = min(end, _ENTRIES // tokens)
    values = (constant(t) for node in ancestors(mask) for t in node.inputs)
    scalars = [v for v in values if v is not None and v.size == 1 and v.dtype.kind == "i"]
    integers = [abs(int(v.item())) for v in scalars]
    beyond = {min(end, value + 1) for value in integers if last <= value < end + tokens}
    return sorted({0, 1, 5, last, *(beyond if last < end else ())})


def _window(row: np.ndarray) -> int:
    """How many columns a row sees, if those are the last of it and not all; else 0."""
    seen = int(np.count_nonzero(row == 0))
    return seen if 0 < seen < row.size and not row[row.size - seen :].any() else 0


def _closed_form(*, past: int, valid: int, tokens: int, window: int) -> np.ndarray:
    columns = np.arange(past + tokens)[None, :]
    rows = past + np.arange(tokens)[:, None]
    allowed = (columns <= rows) & (columns < past + valid)
    return allowed & (columns > rows - window) if window else allowed


def lengths(program: Program) -> list[tuple[gs.Tensor, int]]:
    """Integer scalars that are past + valid wherever they are evaluated, each with its rank."""
    tokens = program.tokens
    candidates = list(_integer_scalars(program))
    if not candidates:
        return []
    proto, inputs = _model(candidates)
    session = ReferenceEvaluator(proto)
    is_length, ranks = [True] * len(candidates), [0] * len(candidates)
    for past, valid in ((0, 1), (0, tokens), (1, 1), (5, (tokens + 1) // 2), (6, tokens)):
        values = _run(session, inputs, past=past, valid=valid, tokens=tokens)
        for index, value in enumerate(values):
            is_length[index] &= value.size == 1 and int(value.flat[0]) == past + valid
            ranks[index] = value.ndim
    found = zip(candidates, ranks, is_length, strict=True)
    return [(tensor, rank) for tensor, rank, is_one in found if is_one]


def _integer_scalars(program: Program) -> Iterator[gs.Tensor]:
    """What depends on the mask's values, and on nothing but it, positions and lengths."""
    graph = program.graph
    dependent = {id(tensor) for tensor in graph.inputs if tensor.name == MASK_INPUT}
    closed = {id(tensor) for tensor in graph.inputs if _is_known(tensor)}
    candidates: list[gs.Tensor] = []
    for node in graph.nodes:
        is_closed = all(
            isinstance(tensor, gs.Constant) or tensor.is_empty() or id(tensor) in closed
            for tensor in node.inputs
        )
        if not is_closed or node.domain:
            continue
        closed.update(id(tensor) for tensor in node.outputs)
        if node.op != "Shape" and any(id(tensor) in dependent for tensor in node.inputs):
            dependent.update(id(tensor) for tensor in node.outputs)
            candidates += node.outputs
    types = _types(candidates)
    yield from (tensor for tensor in candidates if types.get(tensor.name, False))


def _types(tensors: Sequence[gs.Tensor]) -> dict[str, bool]:
    """Whether ONNX infers that a tensor is of int64 and has one element, by its name."""
    if not tensors:
        return {}
    graph = onnx.shape_inference.infer_shapes(_model(tensors)[0]).graph
    return {
        value.name: value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        and value.type.tensor_type.HasField("shape")
        and all(axis.dim_value == 1 for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }


def _is_known(tensor: gs.Tensor) -> bool:
    """Whether a graph input's value follows from past and valid, as far as masks go."""
    return tensor.name in (MASK_INPUT, POSITIONS_INPUT) or tensor.name.startswith(CACHE_PREFIX)


def _model(outputs: Sequence[gs.Tensor]) -> tuple[onnx.ModelProto, list[gs.Tensor]]:
    """The arithmetic of some tensors as a model of its own, and the graph inputs that it reads."""
    nodes = ancestors(*outputs)
    inputs: dict[int, gs.Tensor] = {
        id(tensor): tensor
        for node in nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Variable) and not tensor.inputs and not tensor.is_empty()
    }
    graph = gs.Graph(nodes=nodes, inputs=list(inputs.values()), outputs=list(outputs), opset=OPSET)
    proto = gs.export_onnx(graph, do_type_check=False)
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return proto, list(inputs.values())


def _run(
    session: ReferenceEvaluator, inputs: Sequence[gs.Tensor], *, past: int, valid: int, tokens: int
) -> list[np.ndarray]:
    feeds = _feeds(inputs, past=past, valid=valid, tokens=tokens)
    with np.errstate(all="ignore"):  # infinities are found in the values
        return [np.asarray(result) for result in session.run(None, dict(feeds))]


def _feeds(inputs: Sequence[gs.Tensor], *, past: int, valid: int, tokens: int) -> Arrays:
    feeds: dict[str, np.ndarray] = {}
    for tensor in inputs:
        if tensor.name == MASK_INPUT:
            feeds[tensor.name] = (np.arange(past + tokens) < past + valid).astype(np.int64)[None]
        elif tensor.name == POSITIONS_INPUT:
            feeds[tensor.name] = np.arange(past, past + tokens, dtype=np.int64)[None]
        else:
            shape = [axis if isinstance(axis, int) else past for axis in tensor.shape]
            feeds[tensor.name] = np.zeros(shape, np.float32)
    return feeds
