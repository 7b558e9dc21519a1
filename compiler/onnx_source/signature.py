"""What each input and output of a graph is, by what the graph does with it, never by its name.

int64 [1, T] that looks rows of a weight up           -> input_ids
int64 that reaches a cosine                           -> position_ids
int64, the one that is left                           -> attention_mask
float [1, K, past, d] that one Concat appends to      -> a past key or value, and its output
float [1, T, V], the output that is no cache          -> logits
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.errors import CheckpointError

PAST_AXIS = "past"
SEQUENCE_AXIS = 2
_HINT = (
    "export it with inputs input_ids, attention_mask, position_ids and the past keys and values, "
    "and the present ones as outputs"
)


@dataclass(frozen=True)
class Cache:
    """One growing cache: past -> Concat(past, new) -> present."""

    past: gs.Tensor
    append: gs.Node
    present: gs.Tensor


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs by role; `positions` is None where the graph counts them itself."""

    ids: gs.Tensor
    mask: gs.Tensor
    positions: gs.Tensor | None
    caches: tuple[Cache, ...]
    logits: gs.Tensor


def recognise_signature(graph: gs.Graph, parameters: Iterable[str], path: Path) -> Signature:
    """The role of every input and output.

    Raises:
        CheckpointError: One is missing, of an unexpected type, or has no role.
    """
    weights = set(parameters)
    given = [tensor for tensor in graph.inputs if tensor.name not in weights]
    integers = [t for t in given if t.dtype == np.int64 and len(t.shape or ()) == 2]
    caches = tuple(_cache(t, graph, path) for t in given if t.shape is not None and _is_past(t))
    for tensor in given:
        if not any(tensor is known for known in (*integers, *(c.past for c in caches))):
            spelled = f"{tensor.dtype} {list(tensor.shape or ())}"
            raise _error(path, f"input '{tensor.name}', {spelled}, is none that a decoder takes")
    ids = [t for t in integers if _looks_rows_up(t, weights)]
    if len(ids) != 1:
        names = [t.name for t in ids]
        raise _error(path, f"tokens enter through the inputs {names}, expected one")
    rest = [t for t in integers if t is not ids[0]]
    positions = [t for t in rest if _reaches(t, ("Cos", "Sin"))]
    masks = [t for t in rest if not any(t is other for other in positions)]
    if len(positions) > 1 or len(masks) > 1:
        names = [t.name for t in (positions if len(positions) > 1 else masks)]
        raise _error(path, f"the inputs {names} have the same role")
    if not masks:
        raise _error(path, "it takes no attention mask")
    if not caches:
        raise _error(path, "it takes no past keys and values, so that it cannot decode")
    presents = [cache.present for cache in caches]
    logits = [t for t in graph.outputs if not any(t is present for present in presents)]
    if len(logits) != 1 or logits[0].dtype != np.float32:
        names = [t.name for t in logits]
        raise _error(path, f"the outputs {names} are no caches, expected float32 logits alone")
    return Signature(ids[0], masks[0], next(iter(positions), None), caches, logits[0])


def bind_lengths(signature: Signature, tokens: int, path: Path) -> None:
    """Batch 1, `tokens` tokens, a symbolic past: where the file fixes an axis it must agree.

    Raises:
        CheckpointError: The file fixes another batch or number of tokens, or fixes the past.
    """
    for tensor in (signature.ids, signature.positions):
        if tensor is not None:
            _check_axis(tensor, 0, 1, path)
            _check_axis(tensor, 1, tokens, path)
            tensor.shape = [1, tokens]
    length = f"{PAST_AXIS} + {tokens}"
    for tensor, axis in ((signature.mask, 1), *((c.past, SEQUENCE_AXIS) for c in signature.caches)):
        _check_axis(tensor, 0, 1, path)
        if isinstance(tensor.shape[axis], int):
            raise _error(
                path,
                f"input '{tensor.name}' has {tensor.shape[axis]} positions, the past is fixed",
                hint="export it with dynamic_shapes, so that the past can grow",
            )
    signature.mask.shape = [1, length]
    for cache in signature.caches:
        _, heads, _, head_dim = cache.past.shape
        if not isinstance(heads, int) or not isinstance(head_dim, int):
            raise _error(path, f"input '{cache.past.name}' has heads of unknown number or width")
        cache.past.shape = [1, heads, PAST_AXIS, head_dim]
        cache.present.shape = [1, heads, length, head_dim]
        cache.present.dtype = np.dtype(np.float32)
    vocabulary = (signature.logits.shape or [None])[-1]
    if not isinstance(vocabulary, int):
        raise _error(path, f"output '{signature.logits.name}' has a vocabulary of unknown size")
    signature.logits.shape = [1, tokens, vocabulary]


def _check_axis(tensor: gs.Tensor, axis: int, expected: int, path: Path) -> None:
    found = tensor.shape[axis]
    if isinstance(found, int) and found != expected:
        raise _error(
            path,
            f"input '{tensor.name}' is fixed to {found} on axis {axis}, {expected} is wanted",
            hint="export it with dynamic_shapes: prefill takes the window, decode one token",
        )


def _is_past(tensor: gs.Tensor) -> bool:
    return tensor.dtype == np.float32 and len(tensor.shape) == 4


def _cache(past: gs.Tensor, graph: gs.Graph, path: Path) -> Cache:
    readers = [node for node in past.outputs if node.op != "Shape"]
    if len(readers) != 1 or readers[0].op != "Concat" or readers[0].inputs[0] is not past:
        names = [node.name for node in readers]
        raise _error(path, f"input '{past.name}' is read by {names}, expected a Concat to it")
    append = readers[0]
    present = append.outputs[0]
    if append.attrs.get("axis") not in (SEQUENCE_AXIS, SEQUENCE_AXIS - 4):
        raise _error(path, f"node '{append.name}' appends on another axis than the tokens'")
    if len(append.inputs) != 2 or not any(present is output for output in graph.outputs):
        raise _error(path, f"node '{append.name}' makes no output of the graph")
    return Cache(past, append, present)


def _looks_rows_up(tensor: gs.Tensor, weights: set[str]) -> bool:
    return any(
        node.op == "Gather" and node.inputs[1] is tensor and node.inputs[0].name in weights
        for node in tensor.outputs
    )


def _reaches(tensor: gs.Tensor, ops: tuple[str, ...]) -> bool:
    """Whether a node of `ops` depends on the tensor's values, its length aside."""
    seen: set[int] = set()
    stack = list(tensor.outputs)
    while stack:
        node = stack.pop()
        if node.op in ops:
            return True
        if id(node) in seen or node.op in ("Shape", "MatMul", "Softmax"):
            continue
        seen.add(id(node))
        stack.extend(reader for output in node.outputs for reader in output.outputs)
    return False


def _error(path: Path, problem: str, *, hint: str = _HINT) -> CheckpointError:
    return CheckpointError(problem, where=str(path), hint=hint, code="onnx-signature")
