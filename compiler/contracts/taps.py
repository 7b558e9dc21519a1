"""Where a running model is observed: the same points, under the same names, on every target.

A tap is shown as float32 [tokens, width]: the rows of the call's real tokens, heads side by side.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

# Of a decoder layer, in the order of computation. `keys` and `values` are the rows that the call
# wrote to the cache, as attention reads them back; `attn` is what the output projection takes,
# `act` what the down projection takes.
LAYER_TAPS: tuple[str, ...] = (
    "norm1",
    "q",
    "k",
    "v",
    "q_rot",
    "k_rot",
    "keys",
    "values",
    "attn",
    "o",
    "resid1",
    "norm2",
    "gate",
    "up",
    "act",
    "down",
    "resid2",
)
# What a layer leaves behind.
LAYER_RESULTS: tuple[str, ...] = ("keys", "values", "resid2")
# Before the first layer; after the last. `logits` is one row: the last real token's.
FIRST_TAPS: tuple[str, ...] = ("embed",)
LAST_TAPS: tuple[str, ...] = ("norm", "logits")

_LAYER = re.compile(r"model\.layers\.(\d+)/(\w+)")


@dataclass(frozen=True)
class Tap:
    """One point of one model; `str` gives `model.layers.3/q`, or `logits` outside the layers."""

    layer: int | None
    point: str

    def __str__(self) -> str:
        return self.point if self.layer is None else f"model.layers.{self.layer}/{self.point}"

    @staticmethod
    def parse(text: str) -> "Tap":
        """The tap that `str` gave `text`."""
        found = _LAYER.fullmatch(text)
        return Tap(None, text) if found is None else Tap(int(found[1]), found[2])


def taps_of(layers: int, points: frozenset[str] | None = None) -> tuple[Tap, ...]:
    """Every tap of a model in the order of computation, or those at `points`."""
    taps = (
        *(Tap(None, point) for point in FIRST_TAPS),
        *(Tap(layer, point) for layer in range(layers) for point in LAYER_TAPS),
        *(Tap(None, point) for point in LAST_TAPS),
    )
    return tuple(tap for tap in taps if points is None or tap.point in points)


class Observer(ABC):
    """Sees taps while a runner computes, and may put other values in their place.

    Attributes:
        points: What it asks for; a runner shows nothing else.
    """

    points: frozenset[str] = frozenset((*FIRST_TAPS, *LAYER_TAPS, *LAST_TAPS))

    @abstractmethod
    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        """One tap of the call that is running.

        Args:
            tap: Which.
            rows: float32 [tokens, width], the observer's own; NaN and infinity as they are.

        Returns:
            What the model goes on with instead, in the same shape; None leaves the value.
        """
