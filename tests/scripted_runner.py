"""A runner of a few lines: layers as numpy functions, every tap shown, faults planted at taps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.contracts.errors import TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import LAYER_TAPS, Observer, Tap, taps_of

WIDTH, VOCABULARY = 8, 11
# What each point of a layer is computed from.
_INPUTS: Mapping[str, tuple[str, ...]] = {
    "norm1": ("x",),
    "q": ("norm1",),
    "k": ("norm1",),
    "v": ("norm1",),
    "q_rot": ("q",),
    "k_rot": ("k",),
    "keys": ("k_rot",),
    "values": ("v",),
    "attn": ("q_rot", "keys", "values"),
    "o": ("attn",),
    "resid1": ("x", "o"),
    "norm2": ("resid1",),
    "gate": ("norm2",),
    "up": ("norm2",),
    "act": ("gate", "up"),
    "down": ("act",),
    "resid2": ("resid1", "down"),
}

Fault = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Script:
    """How a runner computes and what it shows.

    Attributes:
        layers: Decoder layers.
        width: Of each tap but the logits.
        faults: What is done to the value of a tap.
        hidden: Taps that it does not show.
        is_swapped: Whether k_rot is shown before q_rot.
        parts: Tokens of a part of a call; 0 makes a call whole.
        refused: Points that cannot be replaced.
        watched_noise: What is added to the logits while it is watched.
    """

    layers: int = 4
    width: int = WIDTH
    faults: Mapping[Tap, Fault] = field(default_factory=dict[Tap, Fault])
    hidden: frozenset[Tap] = frozenset()
    is_swapped: bool = False
    parts: int = 0
    refused: frozenset[str] = frozenset()
    watched_noise: float = 0.0


class ScriptedRunner(Runner):
    """Position by position, but for the sum that attention takes of all keys and values so far."""

    vocabulary = VOCABULARY
    context = 1000

    def __init__(self, script: Script) -> None:
        self.layers = script.layers
        self.is_closed = False
        self._script = script
        self._observer: Observer | None = None
        self._cache: dict[tuple[int, str], np.ndarray] = {}

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        size = self._script.parts or len(tokens)
        logits = np.empty(0, np.float32)
        for start in range(0, len(tokens), size):
            logits = self._part(tokens[start : start + size])
        return logits

    def observe(self, observer: Observer | None) -> None:
        self._observer = observer

    def close(self) -> None:
        self.is_closed = True

    def _part(self, tokens: Sequence[int]) -> np.ndarray:
        wide = np.array(tokens, np.float32)[:, None] + np.arange(self._script.width)
        x = self._tap(Tap(None, "embed"), np.sin(wide).astype(np.float32))
        for layer in range(self.layers):
            x = self._layer(layer, x)
        norm = self._tap(Tap(None, "norm"), np.tanh(x))
        head = np.cos(np.arange(VOCABULARY)[None] * norm[-1:].sum()).astype(np.float32)
        logits = self._tap(Tap(None, "logits"), head)
        self.length += len(tokens)
        noise = self._script.watched_noise if self._observer is not None else 0.0
        return logits[0] + np.float32(noise)

    def _layer(self, layer: int, x: np.ndarray) -> np.ndarray:
        found = {"x": x}
        order = list(LAYER_TAPS)
        if self._script.is_swapped:
            first, second = order.index("q_rot"), order.index("k_rot")
            order[first], order[second] = order[second], order[first]
        for point in order:
            value = sum(found[name] for name in _INPUTS[point])
            if point == "attn":
                value = found["q_rot"] + self._past(layer, "keys") + self._past(layer, "values")
            shift = np.float32(LAYER_TAPS.index(point) * 0.01 + layer * 0.1)
            value = np.sin(value + shift).astype(np.float32)
            found[point] = self._tap(Tap(layer, point), value)
            if point in ("keys", "values"):
                self._write(layer, point, found[point])
        return found["resid2"]

    def _write(self, layer: int, point: str, rows: np.ndarray) -> None:
        held = self._cache.get((layer, point), rows[:0])
        self._cache[layer, point] = np.concatenate([held[: self.length], rows])

    def _past(self, layer: int, point: str) -> np.ndarray:
        """Row by row, the mean of all positions up to it."""
        held = self._cache[layer, point]
        counts = np.arange(1, len(held) + 1, dtype=np.float32)[:, None]
        return (np.cumsum(held, axis=0, dtype=np.float32) / counts)[self.length :]

    def _tap(self, tap: Tap, value: np.ndarray) -> np.ndarray:
        fault = self._script.faults.get(tap)
        if fault is not None:
            value = fault(value)
        observer = self._observer
        if observer is None or tap.point not in observer.points or tap in self._script.hidden:
            return value
        given = observer.see(tap, value.copy())
        if given is None:
            return value
        if tap.point in self._script.refused:
            raise TargetError(f"{tap} cannot be replaced")
        return given


def hidden(layers: int, *points: str) -> frozenset[Tap]:
    """These points in every layer, or outside of them."""
    return frozenset(taps_of(layers, frozenset(points)))
