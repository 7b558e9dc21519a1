"""One observer of a model whose layers are divided between ranks.

Every rank shows its taps in the same order. Of what ranks divide (heads, channels of the MLP) the
observer sees all shares side by side; of what is whole on each of them, the first rank's.
"""

from collections.abc import Sequence

import numpy as np

from compiler.contracts.taps import Observer, Tap
from compiler.ranks.exchange import Exchange

# Points of which each rank has its own columns.
DIVIDED_POINTS = frozenset(
    ("q", "k", "v", "q_rot", "k_rot", "keys", "values", "attn", "gate", "up", "act")
)
# Of these a head may stand on several ranks.
_KEY_POINTS = frozenset(("k", "v", "k_rot", "keys", "values"))


class RankObserver(Observer):
    """What one rank's runner shows its taps to: a share of what `observer` sees.

    Args:
        observer: Asked once for all ranks, in the first rank's thread.
        exchange: Of the ranks; they are in step.
        rank: Whose.
        is_repeated: Whether a key head may stand on several ranks; its points are not shown then,
            for side by side they would be more heads than the model has.
    """

    def __init__(
        self, observer: Observer, exchange: Exchange, rank: int, *, is_repeated: bool
    ) -> None:
        self.points = observer.points - (_KEY_POINTS if is_repeated else frozenset())
        self._observer, self._exchange, self._rank = observer, exchange, rank

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        """Join the shares, ask, and hand back this rank's share of the answer."""
        is_divided = tap.point in DIVIDED_POINTS
        shares = self._exchange.swap(self._rank, rows) if is_divided else [rows]
        given = self._asked(tap, joined_columns(shares))
        if given is None or not is_divided:
            return given
        ends = np.cumsum([share.shape[1] for share in shares])
        return np.split(given, ends[:-1], axis=1)[self._rank]

    def _asked(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        """The first rank asks, and tells the others."""
        given = self._observer.see(tap, rows) if self._rank == 0 else None
        # An answer has rows: nothing stands for None.
        (told, *_) = self._exchange.swap(self._rank, np.empty((0, 0)) if given is None else given)
        return told if told.size else None


def joined_columns(shares: Sequence[np.ndarray]) -> np.ndarray:
    """[tokens, width] of each rank -> all of them side by side."""
    return np.concatenate(shares, axis=1)
