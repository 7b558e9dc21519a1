"""A decoder of random weights in numpy: windows, padding, decode, a cache; and faults to plant."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.contracts.program import Phase
from compiler.contracts.runner import WindowedRunner

Fault = Literal[
    "",
    "looks-ahead",  # a row sees one slot more
    "looks-ahead-in-call",  # likewise, but nothing past the last real token
    "keys-late",  # keys are written one slot late
    "decode-keys-late",  # likewise, in decode alone
    "last-row",  # the logits of the padded window's last row
    "padding-written",  # rows of padding enter the cache
    "never-forgets",  # what a rewind cut off is seen
    "decode-position",  # decode rotates keys by one position more
    "one-scale",  # values are rounded by a scale of all rows of the call
    "clamped-write",  # a window that does not fit is written where it fits
    "nan",  # one value is NaN
]
BLOCKED = np.float32(-1e30)


@dataclass(frozen=True)
class Sizes:
    """Of a decoder, its window, and its context."""

    window: int = 4
    context: int = 12
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    vocabulary: int = 61
    has_decode: bool = True
    takes_padding: bool = True


class WindowDecoder(WindowedRunner):
    """Computes as a bundle does; `fault` in `layer`."""

    def __init__(self, sizes: Sizes, fault: Fault = "", layer: int = 0, *, seed: int = 7) -> None:
        self.window, self.context, self.layers = sizes.window, sizes.context, sizes.layers
        self.vocabulary = sizes.vocabulary
        self.has_decode, self.takes_padding = sizes.has_decode, sizes.takes_padding
        self._sizes, self._fault, self._faulty_layer = sizes, fault, layer
        self._high_water = 0
        generator = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return (generator.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

        hidden, kv_width = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self._embedding = draw(sizes.vocabulary, hidden) * np.float32(8)
        self._blocks = [
            {
                "q": draw(hidden, hidden),
                "k": draw(hidden, kv_width),
                "v": draw(hidden, kv_width),
                "o": draw(hidden, hidden),
                "up": draw(hidden, 2 * hidden),
                "down": draw(2 * hidden, hidden),
            }
            for _ in range(sizes.layers)
        ]
        self._head = draw(hidden, sizes.vocabulary)
        shape = (sizes.layers, 2, sizes.context, kv_width)
        self._caches = np.zeros(shape, np.float32)

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        assert 1 <= valid <= tokens.shape[1]
        assert past + valid <= self.context
        hidden = self._embedding[tokens[0]]
        for layer in range(self.layers):
            hidden = hidden + self._attend(layer, _norm(hidden), phase, past=past, valid=valid)
            block = self._blocks[layer]
            hidden = hidden + np.maximum(_norm(hidden) @ block["up"], 0) @ block["down"]
        self._high_water = max(self._high_water, past + valid)
        is_last = self._fault == "last-row" or not self.takes_padding
        return (_norm(hidden) @ self._head)[-1 if is_last else valid - 1]

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        assert 0 <= start < stop <= self.length, f"rows {start} to {stop} of {self.length}"
        keys, values = self._caches[layer, :, start:stop]
        return keys.copy(), values.copy()

    def _has(self, fault: Fault, layer: int) -> bool:
        return (fault, layer) == (self._fault, self._faulty_layer)

    def _attend(
        self, layer: int, x: np.ndarray, phase: Phase, *, past: int, valid: int
    ) -> np.ndarray:
        sizes, block, count = self._sizes, self._blocks[layer], len(x)
        positions = past + np.arange(count)
        shifted = phase == "decode" and self._has("decode-position", layer)
        q = _rotated((x @ block["q"]).reshape(count, sizes.heads, -1), positions)
        k = _rotated((x @ block["k"]).reshape(count, sizes.kv_heads, -1), positions + shifted)
        v = x @ block["v"]
        if self._has("one-scale", layer):
            scale = np.abs(v).max() / np.float32(31)
            v = np.round(v / scale) * scale
        if self._has("nan", layer):
            v[valid - 1, 3] = np.nan
        late_write = self._has("keys-late", layer) or (
            phase == "decode" and self._has("decode-keys-late", layer)
        )
        self._write(layer, k.reshape(count, -1), v, past=past, valid=valid, late=late_write)
        keys, values = (
            cache.reshape(sizes.context, sizes.kv_heads, sizes.head_dim).repeat(
                sizes.heads // sizes.kv_heads, axis=1
            )
            for cache in self._caches[layer]
        )
        scores = np.einsum("thd,chd->htc", q, keys) / np.float32(np.sqrt(sizes.head_dim))
        seen = self._seen(layer, positions, past + valid)
        scores = np.where(seen, scores, BLOCKED)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("htc,chd->thd", shares, values).reshape(count, -1) @ block["o"]

    def _seen(self, layer: int, positions: np.ndarray, filled: int) -> np.ndarray:
        columns, rows = np.arange(self.context), positions[:, None]
        if self._has("looks-ahead", layer):
            return (columns <= rows + 1) & (columns < filled + 1)
        if self._has("looks-ahead-in-call", layer):
            return (columns <= rows + 1) & (columns < filled)
        seen = (columns <= rows) & (columns < filled)
        if self._has("never-forgets", layer):
            seen |= (columns >= filled) & (columns < self._high_water)
        return seen

    def _write(
        self, layer: int, k: np.ndarray, v: np.ndarray, *, past: int, valid: int, late: bool
    ) -> None:
        count = len(k) if self._has("padding-written", layer) else valid
        clamped = min(past, self.context - len(k))
        for index, rows in enumerate((k, v)):
            start = clamped if self._has("clamped-write", layer) else past
            start += index == 0 and late
            stop = min(start + count, self.context)
            self._caches[layer, index, start:stop] = rows[: stop - start]


def _norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6))


def _rotated(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    angles = np.outer(positions, 100.0 ** (-np.arange(half) / half))[:, None].astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
