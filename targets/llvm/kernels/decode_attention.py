"""Attention of one token: lanes run along head_dim, and the keys are split into runs for threads.

A run takes a block of keys of all heads before the next: caches hold a token's heads side by side,
so that they are read as they lie, and the next block is asked for meanwhile. It leaves a partial
result of each head (largest score, sum of weights, weighted sum of V), and a last loop joins the
runs. The queries of a group share every load of K and V. A head_dim that is not a multiple of the
lanes ends in a vector that overlaps the one before: its repeated lanes are zero in q, and computed
twice, equally, in the output.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import math
from dataclasses import dataclass

from tvm import DataType, tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.attention_shape import AttentionShape, Operands
from targets.llvm.kernels.vector_math import (
    FLOAT32_LOWEST,
    assign,
    exp,
    horizontal_max,
    horizontal_sums,
    load,
    prefetch,
    register,
    splat,
    store,
    value_of,
)

# Keys of a block: scores of a group stay in L1, and are a multiple of every vector's lanes.
_KEYS = 64
_LINE_BYTES = 64
# Runs: they divide over 2, 4 or 8 threads.
_RUNS = 8


@dataclass(frozen=True)
class _Plan:
    """How a head lies in vectors, and the partial results [kv_heads, runs, group, ...]."""

    shape: AttentionShape
    lanes: int
    vectors: int
    accumulators: int
    largest: Buffer
    total: Buffer
    sums: Buffer

    def offset(self, vector: Expr) -> Expr:
        """Where in the head a vector starts; the last one ends with the head."""
        if self.vectors * self.lanes == self.shape.head_dim:
            return vector * self.lanes
        return T.min(vector * self.lanes, self.shape.head_dim - self.lanes)


def emit_decode(operands: Operands, shape: AttentionShape, *, features: CpuFeatures) -> None:
    """Emit the body of the function for one token."""
    lanes = min(features.lanes, 1 << (shape.head_dim.bit_length() - 1))
    vectors = -(-shape.head_dim // lanes)
    partial = (shape.kv_heads, _RUNS, shape.group)
    plan = _Plan(
        shape=shape,
        lanes=lanes,
        vectors=vectors,
        accumulators=features.vector_registers * 3 // 4,
        largest=T.alloc_buffer(partial, "float32"),
        total=T.alloc_buffer(partial, "float32"),
        sums=T.alloc_buffer((*partial, vectors * lanes), "float32"),
    )
    past = T.cast(operands.past_length[0], "int32")
    allowed = T.min(T.cast(operands.valid_length[0], "int32"), 1)
    end = T.Bind(past + allowed)
    begin = T.Bind(T.max(past + 1 - shape.window, 0)) if shape.window else 0
    run_length = T.Bind((end - begin + (_RUNS * lanes - 1)) // (_RUNS * lanes) * lanes)
    with T.parallel(_RUNS) as run:
        first = begin + run * run_length
        _attend(operands, plan, run, first=first, last=T.min(first + run_length, end))
    _join(operands, plan)


def _attend(operands: Operands, plan: _Plan, run: Expr, *, first: Expr, last: Expr) -> None:
    """Emit one run: keys [first, last) of all kv heads."""
    shape, lanes = plan.shape, plan.lanes
    first, last = T.Bind(first), T.Bind(last)
    queries = _scaled_queries(operands, plan)
    scores = T.alloc_buffer((shape.group, _KEYS), "float32")
    rescale = T.alloc_buffer((shape.group,), "float32")
    totals = T.alloc_buffer((shape.kv_heads, shape.group, lanes), "float32")
    factors = _Factors(operands) if operands.k_cache.dtype == "int8" else None
    with T.grid(shape.kv_heads, shape.group) as (head, g):
        T.buffer_store(plan.largest, splat(FLOAT32_LOWEST, 1), [head, run, g])
        store(totals, (head, g, 0), splat(0.0, lanes), lanes=lanes)
        with T.serial(plan.vectors) as c:
            store(plan.sums, (head, run, g, c * lanes), splat(0.0, lanes), lanes=lanes)
    with T.grid((T.max(last - first, 0) + (_KEYS - 1)) // _KEYS, shape.kv_heads) as (step, head):
        key = T.Bind(first + step * _KEYS)
        count = T.Bind(T.min(last - key, _KEYS))
        _score(operands.k_cache, plan, head, key=key, count=count, queries=queries, scores=scores)
        if factors is not None:
            factors.gather(head, key, count)
        with T.serial(shape.group) as g:
            _softmax(
                plan,
                (head, run, g),
                count=count,
                scores=scores,
                rescale=rescale,
                totals=totals,
                factors=factors,
            )
        _accumulate(
            operands.v_cache,
            plan,
            (head, run),
            key=key,
            count=count,
            scores=scores,
            rescale=rescale,
        )
    with T.grid(shape.kv_heads, shape.group) as (head, g):
        total = horizontal_sums([T.Bind(load(totals, (head, g, 0), lanes))], lanes)
        T.buffer_store(plan.total, total, [head, run, g])


class _Factors:
    """The scales of a block of an int8 cache's keys and values, side by side.

    Attributes:
        of_keys: [_KEYS]; behind the block's last key they hold anything.
        of_values: Likewise.
    """

    def __init__(self, operands: Operands) -> None:
        """Emit the scratch."""
        self._operands = operands
        self.of_keys = T.alloc_buffer((_KEYS,), "float32")
        self.of_values = T.alloc_buffer((_KEYS,), "float32")

    def gather(self, head: Expr, key: Expr, count: Expr) -> None:
        """Emit the scales of keys [key, key + count) of a head."""
        k_scales, v_scales = self._operands.k_scales, self._operands.v_scales
        assert k_scales is not None, "an int8 cache has scales"
        assert v_scales is not None, "an int8 cache has scales"
        with T.serial(count) as j:
            for scales in (k_scales, v_scales):
                prefetch(scales, (key + j + _KEYS, head, 0))
            T.buffer_store(self.of_keys, k_scales[key + j, head, 0], [j])
            T.buffer_store(self.of_values, v_scales[key + j, head, 0], [j])


def _scaled_queries(operands: Operands, plan: _Plan) -> Buffer:
    """Emit scale * q as [heads, vectors, lanes], zero where a vector repeats the one before."""
    heads, lanes = plan.shape.heads, plan.lanes
    queries = T.alloc_buffer((heads, plan.vectors, lanes), "float32")
    scale = splat(plan.shape.scale, lanes)
    with T.serial(heads) as head:
        with T.serial(plan.vectors) as c:
            query = load(operands.q, (0, head, plan.offset(c)), lanes)
            store(queries, (head, c, 0), query * scale, lanes=lanes)
        for i in range(plan.vectors * lanes - plan.shape.head_dim):
            T.buffer_store(queries, splat(0.0, 1), [head, plan.vectors - 1, i])
    return queries


def _score(
    cache: Buffer,
    plan: _Plan,
    head: Expr,
    *,
    key: Expr,
    count: Expr,
    queries: Buffer,
    scores: Buffer,
) -> None:
    """Emit scores[g, j] = q[g] . k[key + j], a few keys at a time."""
    shape, group, lanes = plan.shape, plan.shape.group, plan.lanes
    keys = 1
    while keys < min(lanes, 4) and keys * 2 * group <= plan.accumulators:
        keys *= 2
    with T.serial((count + (keys - 1)) // keys) as step:
        j = step * keys
        rows = [T.Bind(T.min(key + j + n, plan.shape.context - 1)) for n in range(keys)]
        _announce(cache, key + _KEYS, (head * _KEYS + j) * shape.head_dim, keys * shape.head_dim)
        sums = [[register(lanes) for _ in rows] for _ in range(group)]
        with T.serial(plan.vectors) as c:
            d = plan.offset(c)
            vectors = [T.Bind(load(cache, (row, head, d), lanes)) for row in rows]
            for g in range(group):
                query = T.Bind(load(queries, (head * group + g, c, 0), lanes))
                for n, vector in enumerate(vectors):
                    assign(sums[g][n], value_of(sums[g][n]) + query * vector)
        for g in range(group):
            total = horizontal_sums([T.Bind(value_of(s)) for s in sums[g]], lanes)
            store(scores, (g, j), total, lanes=keys)


def _announce(cache: Buffer, key: Expr, first: Expr, count: int) -> None:
    """Emit prefetches of `count` elements from the `first` of the rows that begin with `key`."""
    width = int(cache.shape[1]) * int(cache.shape[2])
    row, within = T.Bind(key + first // width), T.Bind(first % width)
    for offset in range(0, count, _LINE_BYTES // DataType(cache.dtype).itemsize):
        prefetch(cache, (row, 0, within + offset))


def _softmax(
    plan: _Plan,
    at: tuple[Expr, Expr, Expr],
    *,
    count: Expr,
    scores: Buffer,
    rescale: Buffer,
    totals: Buffer,
    factors: "_Factors | None",
) -> None:
    """Emit scores[g] -> exp(scores[g] - largest so far) and the factor for what was summed.

    Of int8 caches, scores are of the keys' codes, and what is left is for the values' codes.
    """
    lanes, g = plan.lanes, at[2]
    steps = (count + (lanes - 1)) // lanes
    largest = register(lanes, value=splat(FLOAT32_LOWEST, lanes))
    with T.serial(steps) as step:
        j = step * lanes
        is_key = (j if lanes == 1 else tirx.Ramp(j, 1, lanes)) < _whole(count, lanes)
        score = load(scores, (g, j), lanes)
        if factors is not None:
            score = score * load(factors.of_keys, (j,), lanes)
        score = T.Bind(T.Select(is_key, score, splat(-math.inf, lanes)))
        store(scores, (g, j), score, lanes=lanes)
        assign(largest, T.max(value_of(largest), score))
    before = T.Bind(plan.largest[at])
    after = T.Bind(T.max(before, horizontal_max(T.Bind(value_of(largest)), lanes)))
    factor = exp(T.Bind(before - after), 1)
    T.buffer_store(plan.largest, after, list(at))
    T.buffer_store(rescale, factor, [g])
    total = register(lanes, value=load(totals, (at[0], g, 0), lanes) * splat(factor, lanes))
    with T.serial(steps) as step:
        j = step * lanes
        weight = exp(T.Bind(load(scores, (g, j), lanes) - splat(after, lanes)), lanes)
        assign(total, value_of(total) + weight)
        if factors is not None:
            weight = weight * load(factors.of_values, (j,), lanes)
        store(scores, (g, j), weight, lanes=lanes)
    store(totals, (at[0], g, 0), value_of(total), lanes=lanes)


def _accumulate(
    cache: Buffer,
    plan: _Plan,
    at: tuple[Expr, Expr],
    *,
    key: Expr,
    count: Expr,
    scores: Buffer,
    rescale: Buffer,
) -> None:
    """Emit sums[g, d] = sums[g, d] * rescale[g] + sum over j of scores[g, j] * v[key + j, d]."""
    group, lanes = plan.shape.group, plan.lanes
    most = max(plan.accumulators // group, 1)
    width = next(n for n in range(min(most, plan.vectors), 0, -1) if plan.vectors % n == 0)
    with T.serial(plan.vectors // width) as part:
        offsets = [T.Bind(plan.offset(part * width + c)) for c in range(width)]
        sums = [[register(lanes) for _ in offsets] for _ in range(group)]
        with T.serial(count) as j:
            place = (at[0] * _KEYS + j) * plan.shape.head_dim + part * (width * lanes)
            _announce(cache, key + _KEYS, place, width * lanes)
            vectors = [T.Bind(load(cache, (key + j, at[0], d), lanes)) for d in offsets]
            for g in range(group):
                weight = T.Bind(splat(scores[g, j], lanes))
                for c, vector in enumerate(vectors):
                    assign(sums[g][c], value_of(sums[g][c]) + weight * vector)
        for g in range(group):
            factor = T.Bind(splat(rescale[g], lanes))
            for c in range(width):
                place = (*at, g, (part * width + c) * lanes)
                value = load(plan.sums, place, lanes) * factor + value_of(sums[g][c])
                store(plan.sums, place, value, lanes=lanes)


def _join(operands: Operands, plan: _Plan) -> None:
    """Emit out[h] = the runs' sums on the scale of their largest score, over the sum of weights."""
    group, lanes = plan.shape.group, plan.lanes
    with T.grid(plan.shape.kv_heads, group) as (head, g):
        largest = T.Bind(plan.largest[head, 0, g])
        for run in range(1, _RUNS):
            largest = T.Bind(T.max(largest, plan.largest[head, run, g]))
        factors = [exp(T.Bind(plan.largest[head, run, g] - largest), 1) for run in range(_RUNS)]
        total = splat(0.0, 1)
        for run, factor in enumerate(factors):
            total = total + plan.total[head, run, g] * factor
        total = T.Bind(total)
        norm = T.Bind(T.Select(total > splat(0.0, 1), splat(1.0, 1) / total, splat(0.0, 1)))
        with T.serial(plan.vectors) as c:
            value = splat(0.0, lanes)
            for run, factor in enumerate(factors):
                part = load(plan.sums, (head, run, g, c * lanes), lanes)
                value = value + part * splat(factor, lanes)
            value = value * splat(norm, lanes)
            store(operands.out, (0, head * group + g, plan.offset(c)), value, lanes=lanes)


def _whole(value: Expr, lanes: int) -> Expr:
    """The integer in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)
