"""Attention of many tokens over bfloat16 caches by AMX: scores [queries][keys], two tile products.

The rows of a kv head are its queries, (token, head of the group) in this order, cut into blocks of
32. A task has one kv head, or a part of its blocks. It first lays the keys and values that it needs
out as tiles, K transposed; then each block of rows walks over the keys:

    scores = q @ k.T         a step of 32 keys at a time, in tiles of [16 queries][16 keys]
    weights = 2^(scores * scale / ln 2 - reference)         rounded to bfloat16, row by row
    totals += weights @ ones, sums += weights @ v           a stretch of four steps at a time

While the vector units make the weights of a step, the tile unit makes the scores of the next: their
instructions alternate, so that both are within the processor's window. Scores lie in one place, and
those of the next step overwrite what was read: two places a multiple of 4 KiB apart would make each
load wait for stores that the tile unit has not finished.

The reference of a row need not be its running maximum, only near it: 2^x keeps its relative
precision wherever x is. It is the largest score of the first step, and 20 more. Once a weight is 2
or more, which one bit of bfloat16 tells, the references rise by the stretch's scores, older sums
are scaled, and the weights of the stretch are made anew. That is rare, and spares all other steps a
maximum of each row and a scaling of the sums. A weight under 2^-106 of the largest is zero.

Totals sum the weights as rounded, which is what multiplies the values: a row whose values are equal
comes out exact but for fp32. The relative error of a weight is at most 2^-8 by rounding
(to 8 bits, away from zero on ties) and 3e-6 by the polynomial, besides the scores'.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures, has_tiles
from targets.llvm.kernels import amx
from targets.llvm.kernels.attention_shape import AttentionShape, Operands
from targets.llvm.kernels.vector_math import (
    FLOAT32_LOWEST,
    assign,
    bfloat16_bits,
    horizontal_max,
    load,
    prefetch,
    register,
    splat,
    store,
    transposed,
    value_of,
    zip_halves,
)
from targets.llvm.kernels.weight_vectors import (
    bfloat16_words,
    is_any_at_least_two,
    power_of_two,
    rounded_pair,
    splat_integer,
    store_words,
)

_LANES = 16
# Queries of a block, in tiles; keys of a step, whose weights are one tile deep; steps of a stretch.
_TILES = 2
_ROWS = _TILES * amx.ROWS
_STEP = 32
_STEPS = 4
# Tasks to aim for: enough for 8 threads, a multiple of 4.
_TASKS, _MULTIPLE = 8, 4
# The largest score of what a reference was made from has the weight 2^-20; a later weight of 2 or
# more, which one bit of bfloat16 tells, makes a new reference.
_MARGIN = 20.0
# Where the scores of a step lie, and where they are made again.
_FIRST, _AGAIN = 0, 1
_BF16_ONE = 0x3F80
# Pieces that a step's rows are cut into, between which other parts are emitted.
_PIECES = 8
# Where in a step something is emitted, from 0 to 1, and what emits it.
_Part = tuple[float, Callable[[], None]]
_BF16 = ("bfloat16", "bfloat16")


def has_tile_prefill(shape: AttentionShape, *, cache_dtype: str, features: CpuFeatures) -> bool:
    """Whether this form applies: AMX with bfloat16, and a depth of whole tiles that fits them."""
    is_whole = shape.head_dim in (32, 64, 96, 128)
    return has_tiles(features) and cache_dtype == "bfloat16" and is_whole


def emit_tile_prefill(operands: Operands, shape: AttentionShape) -> None:
    """Emit the body of the function for more than one token."""
    parts = _parts(shape)
    with T.parallel(shape.kv_heads * parts) as task:
        amx.configure()
        _HeadPart(operands, shape, task // parts, task % parts, parts).emit()
        amx.release()


def _parts(shape: AttentionShape) -> int:
    """Tasks that share a kv head; each lays out its keys and values anew."""
    parts = -(-_TASKS // shape.kv_heads)
    while shape.kv_heads * parts % _MULTIPLE:
        parts += 1
    return min(parts, -(-shape.tokens * shape.group // _ROWS))


class _HeadPart:
    """One task: every `parts`-th block of a kv head's rows, and its scratch buffers."""

    def __init__(
        self, operands: Operands, shape: AttentionShape, head: Expr, share: Expr, parts: int
    ) -> None:
        """Emit the task's scratch; keys count from `base`, the first that any row may see."""
        self.operands, self.shape = operands, shape
        self.head, self.part, self.parts = T.Bind(head), T.Bind(share), parts
        head_dim, window = shape.head_dim, shape.window
        self.past = T.Bind(T.cast(operands.past_length[0], "int32"))
        valid = T.Bind(T.min(T.cast(operands.valid_length[0], "int32"), shape.tokens))
        self.base = T.Bind(T.max(self.past + 1 - window, 0)) if window else 0
        self.keys = T.Bind(self.past + valid - self.base)
        self.rows = T.Bind(valid * shape.group)
        seen = min(shape.context, window + shape.tokens) if window else shape.context
        steps = -(-seen // _STEP)
        tile = (amx.ROWS, _LANES)
        self.k_tiles = T.alloc_buffer((steps, _TILES, head_dim // 32, *tile), "uint32")
        self.v_tiles = T.alloc_buffer((steps, head_dim // 16, amx.ROWS, 32), "uint16")
        self.ones = T.alloc_buffer((amx.ROWS, 32), "uint16")
        self.queries = T.alloc_buffer((_TILES, head_dim // 32, amx.ROWS, 32), "uint16")
        self.scores = T.alloc_buffer((2, _TILES, _TILES, *tile), "float32")
        self.weights = T.alloc_buffer((_STEPS, _TILES, amx.ROWS, 32), "uint16")
        self.sums = T.alloc_buffer((head_dim // 16, _TILES, *tile), "float32")
        self.totals = T.alloc_buffer((_TILES, *tile), "float32")
        self.references = T.alloc_buffer((_ROWS,), "float32")
        self.limits = T.alloc_buffer((_ROWS,), "int32")
        self.starts = T.alloc_buffer((_ROWS,), "int32") if window else None

    def emit(self) -> None:
        """Emit the whole task."""
        blocks = T.Bind((self.rows + (_ROWS - 1)) // _ROWS)
        with T.If(self.part < blocks), T.Then():
            with T.serial(amx.ROWS) as i:
                store_words(self.ones, (i, 0), splat_integer(_BF16_ONE, 32, "uint16"))
            with T.serial((self.keys + (_STEP - 1)) // _STEP) as step:
                self._lay_out(step)
            # Early blocks see few keys and late ones many: parts take turns from both ends.
            with T.serial((blocks + (self.parts - 1)) // self.parts) as turn:
                at = T.Select(turn % 2 == 0, self.part, self.parts - 1 - self.part)
                block = T.Bind(turn * self.parts + at)
                with T.If(block < blocks), T.Then():
                    self._emit_block(T.Bind(block * _ROWS))

    def _lay_out(self, step: Expr) -> None:
        """Emit the tiles of 32 keys; those past the last repeat it, so that 0 * v is 0."""
        k, v = self.operands.k_cache, self.operands.v_cache

        def row(j: Expr | int) -> Expr:
            return self.base + T.min(step * _STEP + j, self.keys - 1)

        with T.serial(_TILES) as tile:
            at = [T.Bind(row(tile * 16 + j)) for j in range(16)]
            with T.serial(self.shape.head_dim // 32) as chunk:
                pairs = [
                    T.Bind(bfloat16_words(k, (p, self.head, chunk * 32), "uint32")) for p in at
                ]
                for r, vector in enumerate(transposed(pairs, _LANES)):
                    store(self.k_tiles, (step, tile, chunk, r, 0), vector, lanes=_LANES)
        with T.serial(amx.ROWS) as r:
            first, second = T.Bind(row(2 * r)), T.Bind(row(2 * r + 1))
            for chunk in range(self.shape.head_dim // 32):
                for far in (first, second):
                    prefetch(v, (far + _STEP, self.head, chunk * 32))
                    prefetch(k, (far + _STEP, self.head, chunk * 32))
                a = T.Bind(bfloat16_words(v, (first, self.head, chunk * 32), "uint16"))
                b = T.Bind(bfloat16_words(v, (second, self.head, chunk * 32), "uint16"))
                for half, vector in enumerate(zip_halves(a, b, 32)):
                    store_words(self.v_tiles, (step, chunk * 2 + half, r, 0), vector)

    def _emit_block(self, first: Expr) -> None:
        """Emit the work of 32 rows from `first`."""
        self._load_queries(first)
        self._set_limits(first)
        begin = 0 if self.starts is None else T.Bind(self.starts[0] // _STEP)
        steps = T.Bind((self.limits[_ROWS - 1] + (_STEP - 1)) // _STEP - begin)
        _run(self._score(begin, _FIRST))
        self._clear(begin * _STEP)
        with T.serial((steps + (_STEPS - 1)) // _STEPS) as stretch:
            done = T.Bind(stretch * _STEPS)
            count = T.Bind(T.min(steps - done, _STEPS))
            overflow = register(32, value=0, dtype="uint16")
            with T.serial(count) as j:
                self._advance(begin, T.Bind(done + j), steps, overflow)
            with T.If(is_any_at_least_two(overflow)), T.Then():
                self._raise_references(begin, done, count)
                with T.serial(count) as j:
                    step = done + j
                    _run(self._score(begin + step, _AGAIN))
                    key = (begin + step) * _STEP
                    self._weigh(key, step, overflow, slot=_AGAIN, is_masked=True)
            self._accumulate(begin + done, count)
        self._store(first)

    def _advance(self, begin: Expr | int, step: Expr, steps: Expr, overflow: Buffer) -> None:
        """Emit the weights of a step, and the scores of the next between their instructions."""
        key = T.Bind((begin + step) * _STEP)
        is_whole = key + _STEP <= self.limits[0]
        if self.starts is not None:
            is_whole = tirx.And(is_whole, key >= self.starts[_ROWS - 1])

        def weigh(*, is_masked: bool, has_next: bool) -> None:
            between = self._score(begin + step + 1, _FIRST) if has_next else []
            self._weigh(key, step, overflow, slot=_FIRST, is_masked=is_masked, between=between)

        with T.If(step + 1 < steps):
            with T.Then(), T.If(is_whole):
                with T.Then():
                    weigh(is_masked=False, has_next=True)
                with T.Else():
                    weigh(is_masked=True, has_next=True)
            with T.Else():
                weigh(is_masked=True, has_next=False)

    def _position(self, row: Expr) -> tuple[Expr, Expr]:
        """Token and query head of a row of this kv head; rows past the end repeat the last."""
        row = T.min(row, self.rows - 1)
        group = self.shape.group
        return row // group, self.head * group + row % group

    def _load_queries(self, first: Expr) -> None:
        q = self.operands.q
        with T.serial(_TILES) as tile, T.serial(amx.ROWS) as i:
            token, head = (T.Bind(of) for of in self._position(first + tile * amx.ROWS + i))
            for chunk in range(self.shape.head_dim // 32):
                for at in (0, _LANES):
                    bits = bfloat16_bits(load(q, (token, head, chunk * 32 + at), _LANES), _LANES)
                    store(self.queries, (tile, chunk, i, at), bits, lanes=_LANES)
            # The next rows, and where these ones go.
            after = first + self.parts * _ROWS + tile * amx.ROWS + i
            far_token, far_head = (T.Bind(of) for of in self._position(after))
            for d in range(0, self.shape.head_dim, _LANES):
                prefetch(q, (far_token, far_head, d))
                prefetch(self.operands.out, (token, head, d))

    def _set_limits(self, first: Expr) -> None:
        """Emit starts[row] and limits[row]: the keys from one to before the other; both rise."""
        with T.serial(_ROWS) as row:
            token, _ = self._position(first + row)
            after = T.Bind(self.past + token + 1)
            T.buffer_store(self.limits, after - self.base, [row])
            if self.starts is not None:
                start = T.max(after - self.shape.window, 0) - self.base
                T.buffer_store(self.starts, start, [row])

    def _clear(self, key: Expr) -> None:
        """Emit zero sums, and references from the first step, whose first key is `key`."""
        zeros = splat(0.0, _LANES)
        with T.serial(_TILES) as tile, T.serial(amx.ROWS) as i:
            store(self.totals, (tile, i, 0), zeros, lanes=_LANES)
            for d in range(self.shape.head_dim // 16):
                store(self.sums, (d, tile, i, 0), zeros, lanes=_LANES)
            largest = self._largest(_FIRST, key, tile, i)
            T.buffer_store(self.references, largest, [tile * amx.ROWS + i])

    def _score(self, at: Expr | int, slot: Expr | int) -> list[_Part]:
        """What emits the scores of the step of keys that lies at `at`, a part each."""

        def multiply(chunk: int) -> None:
            if chunk == 0:
                for tile in range(4):
                    amx.zero(tile)
            for tile, query, keys in ((0, 0, 0), (1, 0, 1), (3, 1, 1), (2, 1, 0)):
                if tile in (0, 3):
                    amx.load(6, self.queries, (query, chunk, 0, 0))
                if tile != 3:
                    amx.load(7, self.k_tiles, (at, keys, chunk, 0, 0))
                amx.dot(tile, 6, 7, dtypes=_BF16)

        def put(tile: int) -> None:
            amx.store(tile, self.scores, (slot, tile // 2, tile % 2, 0, 0))

        chunks = self.shape.head_dim // 32
        return [
            *((0.45 * c / chunks, lambda c=c: multiply(c)) for c in range(chunks)),
            (0.5, lambda: put(0)),
            (0.625, lambda: put(1)),
            (1.0, lambda: put(2)),
            (1.0, lambda: put(3)),
        ]

    def _weigh(
        self,
        key: Expr,
        step: Expr,
        overflow: Buffer,
        *,
        slot: Expr | int,
        is_masked: bool,
        between: Sequence[_Part] = (),
    ) -> None:
        """Emit weights = 2^(scores - reference), and the parts `between` spread over them."""
        pieces = _PIECES if between else 1
        rows = _ROWS // pieces
        seen = register(32, value=value_of(overflow), dtype="uint16")
        waiting = sorted(between, key=lambda part: part[0])
        for piece in range(pieces):
            while waiting and waiting[0][0] * pieces <= piece:
                waiting.pop(0)[1]()
            with T.serial(rows) as i:
                row = piece * rows + i
                tile, line = row // amx.ROWS, row % amx.ROWS
                reference = T.Bind(splat(self.references[row], _LANES))
                halves = []
                for half in range(2):
                    score = self._scores_of(slot, key, tile, line, half, is_masked=is_masked)
                    halves.append(power_of_two(T.Bind(score - reference)))
                words = T.Bind(rounded_pair(*halves))
                assign(seen, value_of(seen) | words)
                store_words(self.weights, (step % _STEPS, tile, line, 0), words)
        _run(waiting)
        assign(overflow, value_of(seen))

    @property
    def _scale(self) -> float:
        return self.shape.scale * math.log2(math.e)

    def _scores_of(
        self, slot: Expr | int, key: Expr, tile: Expr, line: Expr, half: int, *, is_masked: bool
    ) -> Expr:
        """Scaled scores of a row and 16 keys, -inf where it may not see one."""
        score = load(self.scores, (slot, tile, half, line, 0), _LANES) * splat(self._scale, _LANES)
        if not is_masked:
            return score
        row = tile * amx.ROWS + line
        keys = tirx.Ramp(key + half * 16, 1, _LANES)
        is_allowed = keys < tirx.Broadcast(self.limits[row], _LANES)
        if self.starts is not None:
            is_allowed = tirx.And(is_allowed, keys >= tirx.Broadcast(self.starts[row], _LANES))
        return T.Select(is_allowed, score, splat(-math.inf, _LANES))

    def _largest(self, slot: Expr | int, key: Expr, tile: Expr, line: Expr) -> Expr:
        """What a row's scores make its reference; never -inf."""
        halves = [
            T.Bind(self._scores_of(slot, key, tile, line, half, is_masked=True))
            for half in range(2)
        ]
        largest = horizontal_max(T.Bind(T.max(*halves)), _LANES)
        return T.max(largest + _MARGIN, FLOAT32_LOWEST)

    def _raise_references(self, begin: Expr | int, done: Expr, count: Expr) -> None:
        """Emit references that fit the scores of a stretch, and older sums scaled to them."""
        raised = T.alloc_buffer((_ROWS,), "float32")
        with T.serial(_ROWS) as row:
            T.buffer_store(raised, self.references[row], [row])
        with T.serial(count) as j:
            at = T.Bind(begin + done + j)
            _run(self._score(at, _AGAIN))
            with T.serial(_TILES) as tile, T.serial(amx.ROWS) as i:
                row = tile * amx.ROWS + i
                largest = self._largest(_AGAIN, at * _STEP, tile, i)
                T.buffer_store(raised, T.max(raised[row], largest), [row])
        with T.serial(_TILES) as tile, T.serial(amx.ROWS) as i:
            row = tile * amx.ROWS + i
            after = T.Bind(raised[row])
            factor = power_of_two(T.Bind(splat(self.references[row] - after, _LANES)))
            T.buffer_store(self.references, after, [row])
            at = (tile, i, 0)
            store(self.totals, at, load(self.totals, at, _LANES) * factor, lanes=_LANES)
            for d in range(self.shape.head_dim // 16):
                at = (d, tile, i, 0)
                store(self.sums, at, load(self.sums, at, _LANES) * factor, lanes=_LANES)

    def _accumulate(self, at: Expr, count: Expr) -> None:
        """Emit sums += weights @ v and totals += weights @ ones over `count` steps from `at`."""
        with T.serial(self.shape.head_dim // 32) as pair:
            places = [(2 * pair + tile % 2, tile // 2, 0, 0) for tile in range(4)]
            for tile, place in enumerate(places):
                amx.load(tile, self.sums, place)
            with T.serial(count) as j:
                for tile in range(_TILES):
                    amx.load(4 + tile, self.weights, (j, tile, 0, 0))
                    amx.load(6 + tile, self.v_tiles, (at + j, 2 * pair + tile, 0, 0))
                for tile in range(4):
                    amx.dot(tile, 4 + tile // 2, 6 + tile % 2, dtypes=_BF16)
            for tile, place in enumerate(places):
                amx.store(tile, self.sums, place)
        amx.load(6, self.ones, (0, 0))
        for tile in range(_TILES):
            amx.load(tile, self.totals, (tile, 0, 0))
        with T.serial(count) as j:
            for tile in range(_TILES):
                amx.load(4 + tile, self.weights, (j, tile, 0, 0))
                amx.dot(tile, 4 + tile, 6, dtypes=_BF16)
        for tile in range(_TILES):
            amx.store(tile, self.totals, (tile, 0, 0))

    def _store(self, first: Expr) -> None:
        """Emit out[row] = sums[row] / total[row]."""
        with T.serial(T.min(self.rows - first, _ROWS)) as row:
            token, head = (T.Bind(of) for of in self._position(first + row))
            tile, line = row // amx.ROWS, row % amx.ROWS
            factor = T.Bind(splat(1.0, _LANES) / load(self.totals, (tile, line, 0), _LANES))
            for d in range(self.shape.head_dim // 16):
                value = load(self.sums, (d, tile, line, 0), _LANES) * factor
                store(self.operands.out, (token, head, d * 16), value, lanes=_LANES)


def _run(parts: Sequence[_Part]) -> None:
    for _, emit in parts:
        emit()
