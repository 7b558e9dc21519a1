"""The tile bodies: what a compute statement does to buffers, its work, and the shape it leaves.

Bodies see float32, whatever the buffers hold, and leave float32; a buffer of f16 rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from compiler.contracts.int8_scales import quantized_rows

Shape: TypeAlias = tuple[int, ...]
Attributes: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Work:
    """Multiply-adds of the matrix unit, and float operations of the vector unit."""

    multiply_adds: int = 0
    vector_operations: int = 0

    @property
    def flops(self) -> int:
        """A multiply-add is two."""
        return 2 * self.multiply_adds + self.vector_operations


@dataclass(frozen=True)
class TileOp:
    """One body.

    Attributes:
        body: Arrays of the inputs and attributes -> one array for each output.
        shapes: The same of shapes.
        work: Of the inputs' shapes.
    """

    body: Callable[[Sequence[np.ndarray], Attributes], tuple[np.ndarray, ...]]
    shapes: Callable[[Sequence[Shape], Attributes], tuple[Shape, ...]]
    work: Callable[[Sequence[Shape]], Work]


def _dot(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """The product x[m, k] . w[n, k]^T, added to the first of three inputs."""
    *before, x, w = inputs
    # One row: BLAS reads a matrix by rows several times faster than a transposed one.
    product = (w @ x[0])[None] if len(x) == 1 else x @ w.T
    return (before[0] + product if before else product,)


def _scale_groups(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """codes[.., k] times scales[.., g] (or [rows], for g of 1): k / g entries share a scale."""
    codes, scales = inputs
    rows = codes.reshape(-1, codes.shape[-1])
    groups = rows.reshape(len(rows), scales.size // len(rows), -1)
    return ((groups * scales.reshape(*groups.shape[:2], 1)).reshape(codes.shape),)


def _round_rows(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """x[.., k] -> codes from -127 to 127 and scales [.., 1], as `quantized_rows` has them."""
    codes, scales = quantized_rows(inputs[0])
    return codes.astype(np.float32), scales


def _rms_norm(inputs: Sequence[np.ndarray], attributes: Attributes) -> tuple[np.ndarray, ...]:
    x, weight = inputs
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return (x / np.sqrt(mean + np.float32(attributes["epsilon"])) * weight,)


def _silu_mul(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    gate, up = inputs
    return (gate / (np.float32(1) + np.exp(-gate)) * up,)


def _rotate(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Of each head x: x * cos + half_turn(x) * sin; cos and sin are [tokens, width]."""
    x, cos, sin = inputs
    x = x.reshape(-1, *cos.shape)
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return (x * cos + turned * sin,)


def _angle(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """positions[t], frequencies[half] -> [t, 2 * half]."""
    positions, frequencies = inputs
    product = positions.reshape(-1, 1) * frequencies.reshape(1, -1)
    return np.concatenate([product, product], axis=-1)


def _begin(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Of queries q[g, t, d]: sums, maxima and totals before the first key."""
    (q,) = inputs
    maxima = np.full(q.shape[:2], -np.inf, np.float32)
    return np.zeros_like(q), maxima, np.zeros(q.shape[:2], np.float32)


def _scores(inputs: Sequence[np.ndarray], attributes: Attributes) -> tuple[np.ndarray, ...]:
    """q[g, t, d] . k[c, 1, d] * scale, -inf where a row may not see a column."""
    q, k = inputs
    group, tokens, width = q.shape
    flat = q.reshape(group * tokens, width)
    products = flat @ k.reshape(-1, width).T * np.float32(attributes["scale"])
    scores = products.reshape(group, tokens, -1)
    rows = int(attributes["row"]) + np.arange(tokens)[:, None]
    columns = int(attributes["column"]) + np.arange(len(k))[None]
    window = int(attributes["window"])
    hidden = columns > rows
    if window:
        hidden |= columns <= rows - window
    scores[:, hidden] = -np.inf
    return (scores,)


def _attend(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Softmax over the columns so far: earlier sums are scaled down where a larger score comes.

    https://arxiv.org/abs/1805.02867, algorithm 3.
    """
    sums, maxima, totals, scores, values = inputs
    peak = np.maximum(maxima, scores.max(axis=-1))
    # A row that sees no key yet: any finite peak keeps its weights at 0.
    base = np.where(np.isfinite(peak), peak, np.float32(0))
    weights = np.exp(scores - base[..., None])
    decay = np.exp(maxima - base)
    group, tokens, columns = scores.shape
    flat = weights.reshape(group * tokens, columns) @ values.reshape(columns, -1)
    sums = sums * decay[..., None] + flat.reshape(sums.shape)
    return sums, peak, totals * decay + weights.sum(axis=-1)


def _finish(inputs: Sequence[np.ndarray], _attributes: Attributes) -> tuple[np.ndarray, ...]:
    """[g, t, d] / totals -> [t, g * d]; a row that saw no key is 0."""
    sums, totals = inputs
    found = sums / np.where(totals > 0, totals, np.float32(1))[..., None]
    return (found.transpose(1, 0, 2).reshape(sums.shape[1], -1),)


def _per_entry(operations: int) -> Callable[[Sequence[Shape]], Work]:
    return lambda shapes: Work(vector_operations=operations * prod(shapes[0]))


def _like_first(shapes: Sequence[Shape], _attributes: Attributes) -> tuple[Shape, ...]:
    return (shapes[0],)


def _dot_shape(shapes: Sequence[Shape], _attributes: Attributes) -> tuple[Shape, ...]:
    return ((shapes[-2][0], shapes[-1][0]),)


def _dot_work(shapes: Sequence[Shape]) -> Work:
    (rows, inner), (columns, _) = shapes[-2:]
    return Work(rows * inner * columns)


def _row_scales(shapes: Sequence[Shape], _attributes: Attributes) -> tuple[Shape, ...]:
    return shapes[0], (*shapes[0][:-1], 1)


def _angle_shape(shapes: Sequence[Shape], _attributes: Attributes) -> tuple[Shape, ...]:
    return ((prod(shapes[0]), 2 * prod(shapes[1])),)


def _angle_work(shapes: Sequence[Shape]) -> Work:
    # A product for each frequency, and a cosine or sine for each entry.
    return Work(vector_operations=3 * prod(shapes[0]) * prod(shapes[1]))


def _scores_shape(shapes: Sequence[Shape], _attributes: Attributes) -> tuple[Shape, ...]:
    (group, tokens, _), (columns, *_) = shapes
    return ((group, tokens, columns),)


def _scores_work(shapes: Sequence[Shape]) -> Work:
    (group, tokens, width), (columns, *_) = shapes
    entries = group * tokens * columns
    return Work(entries * width, 2 * entries)


def _attend_work(shapes: Sequence[Shape]) -> Work:
    (_, _, width), (group, tokens, columns) = shapes[0], shapes[3]
    entries = group * tokens * columns
    return Work(entries * width, 4 * entries + 3 * group * tokens * width)


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> TileOp:
    return TileOp(lambda inputs, _: (function(inputs[0], inputs[1]),), _like_first, _per_entry(1))


TILE_OPS: Mapping[str, TileOp] = {
    "dot": TileOp(_dot, _dot_shape, _dot_work),
    "add": _binary(np.add),
    "add_row": _binary(np.add),
    "scale_columns": _binary(np.multiply),
    "scale_groups": TileOp(_scale_groups, _like_first, _per_entry(1)),
    "round_rows": TileOp(_round_rows, _row_scales, _per_entry(3)),
    "rms_norm": TileOp(_rms_norm, _like_first, _per_entry(4)),
    "silu_mul": TileOp(_silu_mul, _like_first, _per_entry(5)),
    "rotate": TileOp(_rotate, _like_first, _per_entry(3)),
    "cosine": TileOp(lambda given, _: (np.cos(_angle(given)),), _angle_shape, _angle_work),
    "sine": TileOp(lambda given, _: (np.sin(_angle(given)),), _angle_shape, _angle_work),
    "begin": TileOp(_begin, lambda s, _: (s[0], s[0][:2], s[0][:2]), lambda _: Work()),
    "scores": TileOp(_scores, _scores_shape, _scores_work),
    "attend": TileOp(_attend, lambda s, _: tuple(s[:3]), _attend_work),
    "finish": TileOp(_finish, lambda s, _: ((s[0][1], s[0][0] * s[0][2]),), _per_entry(1)),
}
