"""The taps that a partition's runs leave in the device's memory, by the names of the runs.

Nothing is rebuilt: a driver shows every result as it lies there. The residual's sums, the rotated
queries and keys and the gated activation are runs of their own, so every tap is shown.
"""

import re
from collections.abc import Sequence

import numpy as np

from compiler.contracts.int8_scales import quantized_rows
from compiler.contracts.taps import Observer, Tap

_LAYER_TAPS = {
    "input_layernorm": "norm1",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn": "attn",
    "self_attn.o_proj": "o",
    "self_attn.o_proj.residual": "resid1",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.act": "act",
    "mlp.down_proj": "down",
    "mlp.down_proj.residual": "resid2",
}
_FIRST_AND_LAST = {"model.embed_tokens": "embed", "model.norm": "norm"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ROTARY = re.compile(r"self_attn\.(q|k)_(?:proj|norm)\.rotary")
_CACHE = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def tap_of(module: str) -> Tap | None:
    """The tap that a run leaves; None for what is none."""
    if module in _FIRST_AND_LAST:
        return Tap(None, _FIRST_AND_LAST[module])
    if cache := _CACHE.fullmatch(module):
        return Tap(int(cache[1]), f"{cache[2]}s")
    layer = _LAYER.fullmatch(module)
    if layer is None:
        return None
    if rotary := _ROTARY.fullmatch(layer[2]):
        return Tap(int(layer[1]), f"{rotary[1]}_rot")
    point = _LAYER_TAPS.get(layer[2])
    return None if point is None else Tap(int(layer[1]), point)


# What ranks add up: a rank's own result is a part of the sum, the line where they meet gives it.
_SUMMED = ("o", "down")


class TapWatch:
    """Shows one call's runs to an observer; `has_ranks` where the partition is a rank's."""

    def __init__(
        self, observer: Observer, *, tokens: int, past: int, valid: int, has_ranks: bool = False
    ) -> None:
        self._observer, self._has_ranks = observer, has_ranks
        self._tokens, self._past, self._valid = tokens, past, valid

    def __call__(
        self, module: str, composite: str, results: Sequence[np.ndarray]
    ) -> Sequence[np.ndarray] | None:
        """As a driver asks: the second result of an int8 cache's update is the codes' scales."""
        tap = tap_of(module)
        if tap is None or tap.point not in self._observer.points:
            return None
        if self._has_ranks and tap.point in _SUMMED and composite != "all_reduce":
            return None
        rows, *scales = (self._rows(composite, values) for values in results)
        wide = rows.astype(np.float32)
        for steps in scales:
            wide *= steps
        given = self._observer.see(tap, wide.reshape(len(rows), -1))
        if given is None:
            return None
        shaped = given.reshape(rows.shape)
        stored = quantized_rows(shaped) if scales else (shaped,)
        # The values are the device's memory: rows are a view of them, wherever they lie.
        changed = [values.copy() for values in results]
        for values, instead in zip(changed, stored, strict=True):
            self._rows(composite, values)[...] = instead
        return changed

    def see_logits(self, logits: np.ndarray) -> None:
        """Show the result, float32 [vocabulary], and put in place what comes back."""
        if "logits" not in self._observer.points:
            return
        given = self._observer.see(Tap(None, "logits"), logits.reshape(1, -1).copy())
        if given is not None:
            logits[...] = given.reshape(-1)

    def _rows(self, composite: str, values: np.ndarray) -> np.ndarray:
        """The real tokens' rows, a view: of a cache those that were written."""
        if composite == "cache_update":
            return values[self._past : self._past + self._valid]
        if composite == "rotary":
            return values.transpose(1, 0, 2)[: self._valid]
        return values.reshape(self._tokens, -1)[: self._valid]
