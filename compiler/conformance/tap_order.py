"""Whether taps come in an order of computation: none before what it is computed from."""

from collections.abc import Mapping, Sequence

from compiler.contracts.taps import FIRST_TAPS, Tap

# What each point of a layer is computed from; `norm1` from the layer before.
_INPUTS: Mapping[str, tuple[str, ...]] = {
    "q": ("norm1",),
    "k": ("norm1",),
    "v": ("norm1",),
    "q_rot": ("q",),
    "k_rot": ("k",),
    "keys": ("k_rot",),
    "values": ("v",),
    "attn": ("q_rot", "keys", "values"),
    "o": ("attn",),
    "resid1": ("o",),
    "norm2": ("resid1",),
    "gate": ("norm2",),
    "up": ("norm2",),
    "act": ("gate", "up"),
    "down": ("act",),
    "resid2": ("resid1", "down"),
}


def misplaced(shown: Sequence[Tap], layers: int) -> tuple[Tap, Tap] | None:
    """A tap, and one shown after it that it is computed from; None where the order is good."""
    for number, tap in enumerate(shown):
        for later in shown[number + 1 :]:
            if _is_needed(later, tap, layers):
                return tap, later
    return None


def _is_needed(source: Tap, tap: Tap, layers: int) -> bool:
    """Whether `source` is needed to compute `tap`."""
    one, other = _place(source, layers), _place(tap, layers)
    return one < other or (one == other and source.point in _ancestors(tap.point))


def _place(tap: Tap, layers: int) -> int:
    """The layer; what comes before the first and after the last, in order."""
    if tap.layer is not None:
        return tap.layer
    if tap.point in FIRST_TAPS:
        return -1
    return layers if tap.point == "norm" else layers + 1


def _ancestors(point: str) -> frozenset[str]:
    inputs = _INPUTS.get(point, ())
    return frozenset(inputs).union(*(_ancestors(one) for one in inputs))
