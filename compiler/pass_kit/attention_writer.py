"""The attention of a generated block, in the forms that exporters give it.

grouped:   q[1, K, G, T, d] x keys[1, K, 1, d, S], as this compiler's trace has it
repeated:  q[1, H, T, d] x keys[1, H, d, S], each key head copied for its group
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from compiler.pass_kit.block_options import BlockOptions, Projection
from compiler.pass_kit.linear_writer import linear, norm
from compiler.pass_kit.node_writer import NodeWriter, Operand

_INT64_MAX = np.iinfo(np.int64).max
_LOWEST = np.array(np.finfo(np.float32).min, np.float32)
_BY_HEAD: dict[str, object] = {"perm": [0, 2, 1, 3]}
_NO_ZERO: dict[str, object] = {"allowzero": 1}


@dataclass(frozen=True)
class Frame:
    """What every layer reads: token ids, the rotary's tables, and what may see what.

    Attributes:
        ids: Token ids [1, T].
        cos: [1, 1, T, d].
        sin: [1, 1, T, d].
        allowed: Whether a row may see a column, [T, past + T].
        mask: 0 where it may, else the lowest float; None where each layer makes its own.
    """

    ids: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor
    allowed: gs.Tensor
    mask: gs.Tensor | None


def masked(write: NodeWriter, path: str, allowed: gs.Tensor) -> gs.Variable:
    """What is added to scores: 0 where it is allowed, the lowest float elsewhere."""
    return write.node("Where", path, allowed, np.array(0, np.float32), _LOWEST)


def attention(
    write: NodeWriter,
    layer: int,
    x: gs.Tensor,
    frame: Frame,
    past: tuple[gs.Tensor, ...],
    options: BlockOptions,
) -> gs.Variable:
    """Causal grouped-query attention over past and new keys, and its output projection."""
    path = f"model.layers.{layer}.self_attn"
    q, k, v = (_projected(write, path, x, frame, one, options) for one in ("q", "k", "v"))
    q, k = (_rotated(write, path, one, frame, options.head_dim // 2) for one in (q, k))
    keys, values = (
        _appended(write, path, old, new, f"present.{layer}.{part}", options)
        for old, new, part in ((past[0], k, "key"), (past[1], v, "value"))
    )
    attend = _repeated if options.repeats_keys else _grouped
    context = attend(write, path, (q, keys, values), frame, options)
    context = write.node("Transpose", path, context, attrs=_BY_HEAD)
    width = options.heads * options.head_dim
    merged = write.integers(path, 1, options.window, width)
    context = write.node("Reshape", path, context, merged, attrs=_NO_ZERO)
    sizes = (options.hidden, width)
    return linear(write, f"{path}.o_proj", context, sizes, options, projection="o")


def _projected(
    write: NodeWriter,
    path: str,
    x: gs.Tensor,
    frame: Frame,
    projection: Projection,
    options: BlockOptions,
) -> gs.Variable:
    """[1, T, hidden] -> [1, heads, T, d]."""
    heads = options.heads if projection == "q" else options.kv_heads
    sizes = (heads * options.head_dim, options.hidden)
    module = f"{path}.{projection}_proj"
    made = linear(write, module, x, sizes, options, projection=projection)
    shape = _split_shape(write, path, frame, heads, options)
    split = write.node("Reshape", path, made, shape, attrs=_NO_ZERO)
    if options.has_qk_norm and projection != "v":
        split = norm(write, f"{path}.{projection}_norm", split, options.head_dim, options)
    return write.node("Transpose", path, split, attrs=_BY_HEAD)


def _split_shape(
    write: NodeWriter, path: str, frame: Frame, heads: int, options: BlockOptions
) -> Operand:
    """[1, T, heads, d]."""
    if not options.asks_lengths:
        return write.integers(path, 1, options.window, heads, options.head_dim)
    tokens = write.node("Shape", path, frame.ids, attrs={"start": 1, "end": 2})
    inferred = np.array([-1, options.head_dim], np.int64)
    return write.node("Concat", path, np.array([1], np.int64), tokens, inferred, attrs={"axis": 0})


def _rotated(write: NodeWriter, path: str, x: gs.Tensor, frame: Frame, half: int) -> gs.Variable:
    """The pairs (i, i + d/2) of each head turned by their angle."""
    straight = write.commutative("Mul", path, x, frame.cos)

    def part(start: int, stop: int) -> gs.Variable:
        bounds = [write.integers(path, value) for value in (start, stop, 3)]
        return write.node("Slice", path, x, *bounds, np.array([1], np.int64))

    upper, lower = part(half, _INT64_MAX), part(0, half)
    turned = write.node("Concat", path, write.node("Neg", path, upper), lower, attrs={"axis": -1})
    crossed = write.commutative("Mul", path, turned, frame.sin)
    return write.commutative("Add", path, straight, crossed)


def _appended(
    write: NodeWriter, path: str, old: gs.Tensor, new: gs.Tensor, name: str, options: BlockOptions
) -> gs.Variable:
    shape = (1, options.kv_heads, f"past + {options.window}", options.head_dim)
    output = write.output(name, shape)
    return write.node("Concat", path, old, new, attrs={"axis": 2}, output=output)


def _grouped(
    write: NodeWriter,
    path: str,
    operands: tuple[gs.Variable, ...],
    frame: Frame,
    options: BlockOptions,
) -> gs.Variable:
    """Queries grouped by their key head; [1, H, T, d]."""
    q, keys, values = operands
    window, head_dim = options.window, options.head_dim
    grouped = write.integers(path, 1, options.kv_heads, options.group, window, head_dim)
    q = write.node("Reshape", path, q, grouped, attrs=_NO_ZERO)
    group_axis = np.array([2], np.int64)
    keys = write.node("Unsqueeze", path, keys, group_axis)
    keys = write.node("Transpose", path, keys, attrs={"perm": [0, 1, 2, 4, 3]})
    shares = _shares(write, path, q, keys, frame, options)
    values = write.node("Unsqueeze", path, values, group_axis)
    context = write.node("MatMul", path, shares, values)
    by_head = write.integers(path, 1, options.heads, window, head_dim)
    return write.node("Reshape", path, context, by_head, attrs=_NO_ZERO)


def _repeated(
    write: NodeWriter,
    path: str,
    operands: tuple[gs.Variable, ...],
    frame: Frame,
    options: BlockOptions,
) -> gs.Variable:
    """Keys and values copied for each query head; [1, H, T, d]."""
    q, keys, values = operands
    if options.group > 1:
        keys, values = (_copied(write, path, one, options) for one in (keys, values))
    if options.turns_by_reshape:
        keys = _turned_by_reshape(write, path, keys, options)
    else:
        keys = write.node("Transpose", path, keys, attrs={"perm": [0, 1, 3, 2]})
    return write.node("MatMul", path, _shares(write, path, q, keys, frame, options), values)


def _copied(write: NodeWriter, path: str, x: gs.Tensor, options: BlockOptions) -> gs.Variable:
    """[1, K, S, d] -> [1, K * G, S, d]."""
    apart = write.node("Unsqueeze", path, x, np.array([2], np.int64))
    times = write.node("Expand", path, apart, write.integers(path, 1, 1, options.group, 1, 1))
    merged = write.integers(path, 1, options.heads, -1, options.head_dim)
    return write.node("Reshape", path, times, merged, attrs=_NO_ZERO)


def _turned_by_reshape(
    write: NodeWriter, path: str, keys: gs.Tensor, options: BlockOptions
) -> gs.Variable:
    """[1, H, S, d] -> [H, S, d] -> [H, d, S] -> [1, H, d, S]."""
    head_dim = np.array([options.head_dim], np.int64)
    axis: dict[str, object] = {"axis": 0}
    columns = write.node("Shape", path, keys, attrs={"start": 2, "end": 3})
    apart = write.node("Concat", path, np.array([-1], np.int64), columns, head_dim, attrs=axis)
    flat = write.node("Reshape", path, keys, apart)
    turned = write.node("Transpose", path, flat, attrs={"perm": [0, 2, 1]})
    heads = np.array([1, options.heads], np.int64)
    whole = write.node("Concat", path, heads, head_dim, columns, attrs=axis)
    return write.node("Reshape", path, turned, whole)


def _shares(
    write: NodeWriter,
    path: str,
    q: gs.Tensor,
    keys: gs.Tensor,
    frame: Frame,
    options: BlockOptions,
) -> gs.Variable:
    """Attention weights: softmax(q x keys * scale + mask) over the columns."""
    if options.scales_operands:
        root = np.array(options.head_dim**-0.25, np.float32)
        q, keys = (write.commutative("Mul", path, one, root) for one in (q, keys))
        scores = write.node("MatMul", path, q, keys)
    else:
        products = write.node("MatMul", path, q, keys)
        scale = np.array(options.head_dim**-0.5, np.float32)
        scores = write.commutative("Mul", path, products, scale)
    mask = masked(write, path, frame.allowed) if frame.mask is None else frame.mask
    total = write.commutative("Add", path, scores, mask)
    shares = write.node("Softmax", path, total, attrs={"axis": -1})
    if not options.has_nan_guard:
        return shares
    is_nan = write.node("IsNaN", path, shares)
    return write.node("Where", path, is_nan, np.array(0, np.float32), shares)
