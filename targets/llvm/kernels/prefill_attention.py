"""Attention of many tokens: queries lie in the lanes, so softmax needs no sum across a vector.

The rows of a kv head are its queries, (token, head of the group) in this order, cut into blocks of
a few vectors. A block walks over the keys in blocks: scores [keys][rows] by the outer-product tile
over head_dim, an online softmax down the columns, and out [head_dim][rows] by the same tile over
the keys. K and V are widened to fp32 (int8 by its scale) a block at a time, in L1, and serve the
whole group.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import math

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.attention_shape import AttentionShape, Operands
from targets.llvm.kernels.register_tile import TileShape, multiply_accumulate, tile_shape, zeros
from targets.llvm.kernels.vector_math import (
    FLOAT32_LOWEST,
    assign,
    chunks,
    exp,
    load,
    part,
    register,
    slice_of,
    splat,
    store,
    transposed,
    value_of,
)

# Keys of a block: their fp32 panel (64 * head_dim) and scores (64 * rows) stay in L1.
_KEYS = 64


def emit_prefill(operands: Operands, shape: AttentionShape, *, features: CpuFeatures) -> None:
    """Emit the body of the function for more than one token."""
    tile = tile_shape(features)
    rows = shape.tokens * shape.group
    vectors = min(tile.vectors, -(-rows // tile.lanes))
    tile = TileShape(vectors, tile.columns, tile.lanes)
    blocks = -(-rows // (vectors * tile.lanes))
    with T.parallel(shape.kv_heads * blocks) as task:
        head = task // blocks
        turn = task % blocks
        # Early rows see few keys and late ones many: alternate, so that any run of tasks, which is
        # what a thread gets, is as much work as another.
        block = T.Select(turn % 2 == 0, turn // 2, blocks - 1 - turn // 2)
        first = T.Bind(block * (vectors * tile.lanes))
        # The output of rows past the valid ones is unspecified.
        with T.If(first < T.cast(operands.valid_length[0], "int32") * shape.group), T.Then():
            _QueryBlock(operands, shape, tile, head, first).emit()


class _QueryBlock:
    """One task: `vectors * lanes` rows of one kv head, and its scratch buffers."""

    def __init__(
        self, operands: Operands, shape: AttentionShape, tile: TileShape, head: Expr, first: Expr
    ) -> None:
        """Emit the task's scratch: queries and sums transposed, scores, running max and sum."""
        self.operands, self.shape, self.tile = operands, shape, tile
        self.head, self.first = T.Bind(head), T.Bind(first)
        self.rows = shape.tokens * shape.group
        width = tile.vectors * tile.lanes
        self.queries = T.alloc_buffer((shape.head_dim, width), "float32")
        self.sums = T.alloc_buffer((shape.head_dim, width), "float32")
        self.scores = T.alloc_buffer((_KEYS, width), "float32")
        self.panel = T.alloc_buffer((_KEYS, shape.head_dim), "float32")
        self.limits = T.alloc_buffer((width,), "int32")
        self.starts = T.alloc_buffer((width,), "int32") if shape.window else None
        self.largest = T.alloc_buffer((width,), "float32")
        self.total = T.alloc_buffer((width,), "float32")
        self.rescale = T.alloc_buffer((width,), "float32")

    def emit(self) -> None:
        """Emit the whole task."""
        self._load_queries()
        self._set_limits()
        self._clear()
        width = self.tile.vectors * self.tile.lanes
        begin = 0 if self.starts is None else T.Bind(self.starts[0])
        end = T.Bind(self.limits[width - 1])
        keys = end if self.starts is None else T.max(end - begin, 0)
        with T.serial((keys + (_KEYS - 1)) // _KEYS) as step:
            key = begin + step * _KEYS
            count = T.Bind(T.min(end - key, _KEYS))
            self._widen(self.operands.k_cache, self.operands.k_scales, key, count)
            self._score(key, count)
            self._softmax(count)
            self._widen(self.operands.v_cache, self.operands.v_scales, key, count)
            self._accumulate(count)
        self._store()

    def _position(self, row: Expr | int) -> tuple[Expr, Expr]:
        """Token and query head of a row of this kv head; rows past the end repeat the last."""
        row = T.min(self.first + row, self.rows - 1)
        group = self.shape.group
        return row // group, self.head * group + row % group

    def _load_queries(self) -> None:
        """Emit queries[d, row] = scale * q[row, d]."""
        lanes, head_dim = self.tile.lanes, self.shape.head_dim
        scale = self.shape.scale
        whole = head_dim - head_dim % lanes
        q = self.operands.q
        with T.serial(self.tile.vectors) as m:
            at = [self._position(m * lanes + i) for i in range(lanes)]
            if whole > 0:
                with T.serial(whole // lanes) as step:
                    d = step * lanes
                    square = transposed([T.Bind(load(q, (*p, d), lanes)) for p in at], lanes)
                    for i, vector in enumerate(square):
                        scaled = vector * splat(scale, lanes)
                        store(self.queries, (d + i, m * lanes), scaled, lanes=lanes)
            if whole < head_dim:
                with T.serial(head_dim - whole) as d:
                    for i, p in enumerate(at):
                        scaled = q[(*p, whole + d)] * splat(scale, 1)
                        T.buffer_store(self.queries, scaled, [whole + d, m * lanes + i])

    def _set_limits(self) -> None:
        """Emit starts[row] and limits[row]: the keys from one to before the other; both rise."""
        past = T.Bind(T.cast(self.operands.past_length[0], "int32"))
        valid = T.Bind(T.cast(self.operands.valid_length[0], "int32"))
        with T.serial(self.tile.vectors * self.tile.lanes) as row:
            token, _ = self._position(row)
            T.buffer_store(self.limits, past + T.min(token + 1, valid), [row])
            if self.starts is not None:
                start = T.max(past + token + 1 - self.shape.window, 0)
                T.buffer_store(self.starts, start, [row])

    def _clear(self) -> None:
        lanes = self.tile.lanes
        for m in range(self.tile.vectors):
            store(self.largest, (m * lanes,), splat(FLOAT32_LOWEST, lanes), lanes=lanes)
            store(self.total, (m * lanes,), splat(0.0, lanes), lanes=lanes)
        with T.serial(self.shape.head_dim) as d:
            for m in range(self.tile.vectors):
                store(self.sums, (d, m * lanes), splat(0.0, lanes), lanes=lanes)

    def _widen(self, cache: Buffer, scales: Buffer | None, key: Expr, count: Expr) -> None:
        """Emit panel[j, d] = fp32(cache[key + j, head, d]), up to whole tiles of keys."""
        columns = self.tile.columns
        with T.serial((count + (columns - 1)) // columns * columns) as j:
            row = T.min(key + j, self.shape.context - 1)
            factor = None if scales is None else T.Bind(scales[row, self.head, 0])
            for d, width in chunks(self.shape.head_dim, self.tile.lanes):
                value = load(cache, (row, self.head, d), width)
                wide = value if factor is None else value * splat(factor, width)
                store(self.panel, (j, d), wide, lanes=width)

    def _score(self, key: Expr, count: Expr) -> None:
        """Emit scores[j, row] = q . k, or -inf where the row may not see the key."""
        tile, lanes = self.tile, self.tile.lanes
        unroll = 4 if self.shape.head_dim % 4 == 0 else 1
        with T.serial((count + (tile.columns - 1)) // tile.columns) as step:
            j = step * tile.columns
            products = zeros(tile.vectors, tile.columns, lanes)
            multiply_accumulate(
                products,
                self.shape.head_dim,
                left=lambda m, d: load(self.queries, (d, m * lanes), lanes),
                right=lambda n, d: self.panel[j + n, d],
                unroll=unroll,
            )
            for m in range(tile.vectors):
                limits = T.Bind(self.limits[slice_of(m * lanes, lanes)])
                for n in range(tile.columns):
                    is_allowed = self._is_allowed(key + j + n, m * lanes, limits)
                    score = T.Select(is_allowed, value_of(products[m][n]), splat(-math.inf, lanes))
                    store(self.scores, (j + n, m * lanes), score, lanes=lanes)

    def _is_allowed(self, key: Expr, row: int, limits: Expr) -> Expr:
        """Which of the lanes' rows may see a key."""
        keys = tirx.Broadcast(key, self.tile.lanes)
        if self.starts is None:
            return keys < limits
        return tirx.And(keys < limits, keys >= self.starts[slice_of(row, self.tile.lanes)])

    def _softmax(self, count: Expr) -> None:
        """Emit scores -> exp(scores - largest so far), and the factor for older sums."""
        lanes = self.tile.lanes
        for m in range(self.tile.vectors):
            at = (m * lanes,)
            before = T.Bind(load(self.largest, at, lanes))
            largest = register(lanes, value=before)
            with T.serial(count) as j:
                score = load(self.scores, (j, *at), lanes)
                assign(largest, T.max(value_of(largest), score))
            after = T.Bind(value_of(largest))
            rescale = exp(T.Bind(before - after), lanes)
            total = register(lanes, value=load(self.total, at, lanes) * rescale)
            with T.serial(count) as j:
                weight = exp(T.Bind(load(self.scores, (j, *at), lanes) - after), lanes)
                store(self.scores, (j, *at), weight, lanes=lanes)
                assign(total, value_of(total) + weight)
            store(self.largest, at, after, lanes=lanes)
            store(self.rescale, at, rescale, lanes=lanes)
            store(self.total, at, value_of(total), lanes=lanes)

    def _accumulate(self, count: Expr) -> None:
        """Emit sums[d, row] = sums[d, row] * rescale[row] + panel[j, d] * scores[j, row]."""
        columns, head_dim = self.tile.columns, self.shape.head_dim
        if head_dim >= columns:
            with T.serial(head_dim // columns) as step:
                self._accumulate_columns(count, step * columns, columns)
        if head_dim % columns:
            self._accumulate_columns(count, head_dim - head_dim % columns, head_dim % columns)

    def _accumulate_columns(self, count: Expr, d: Expr | int, columns: int) -> None:
        lanes = self.tile.lanes
        products = zeros(self.tile.vectors, columns, lanes)
        multiply_accumulate(
            products,
            count,
            left=lambda m, j: load(self.scores, (j, m * lanes), lanes),
            right=lambda n, j: self.panel[j, d + n],
        )
        for m in range(self.tile.vectors):
            rescale = T.Bind(load(self.rescale, (m * lanes,), lanes))
            for n in range(columns):
                at = (d + n, m * lanes)
                value = load(self.sums, at, lanes) * rescale + value_of(products[m][n])
                store(self.sums, at, value, lanes=lanes)

    def _store(self) -> None:
        """Emit out[row, d] = sums[d, row] / total[row], zero where the row saw no key."""
        lanes, columns, head_dim = self.tile.lanes, self.tile.columns, self.shape.head_dim
        whole = head_dim - head_dim % columns
        with T.serial(self.tile.vectors) as m:
            total = T.Bind(load(self.total, (m * lanes,), lanes))
            is_empty = total <= splat(0.0, lanes)
            factor = T.Bind(T.Select(is_empty, splat(0.0, lanes), splat(1.0, lanes) / total))
            if whole > 0:
                with T.serial(whole // columns) as step:
                    self._store_columns(m, step * columns, factor)
            with T.serial(head_dim - whole) as d:
                row = (whole + d, m * lanes)
                normal = register(lanes, value=load(self.sums, row, lanes) * factor)
                with T.serial(lanes) as i, T.If(self.first + m * lanes + i < self.rows), T.Then():
                    T.buffer_store(
                        self.operands.out, normal[i], [*self._position(m * lanes + i), whole + d]
                    )

    def _store_columns(self, m: Expr, d: Expr, factor: Expr) -> None:
        lanes, columns = self.tile.lanes, self.tile.columns
        normal = [
            T.Bind(load(self.sums, (d + n, m * lanes), lanes) * factor) for n in range(columns)
        ]
        vectors = transposed(normal, lanes)
        per_vector = lanes // columns
        for i in range(lanes):
            value = part(vectors[i // per_vector], i % per_vector * columns, columns)
            with T.If(self.first + m * lanes + i < self.rows), T.Then():
                at = (*self._position(m * lanes + i), d)
                store(self.operands.out, at, value, lanes=columns)
