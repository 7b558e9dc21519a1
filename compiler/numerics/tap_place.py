"""How a tap lies in a tensor of a graph: from the tensor to rows of tokens, and back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Where a call's tokens stand on the token axis: from its start, behind what the cache held before,
# or the last real token alone.
Span = Literal["call", "cache", "last"]


@dataclass(frozen=True)
class TapPlace:
    """One tap in a graph.

    Attributes:
        tensor: Name of its tensor.
        token_axis: -2 where the width, or that of a head, is the last axis: [1, T, W],
            [1, H, T, d], [1, K, G, T, d]; 0 where tokens come first: [T, K, d].
        span: Which positions of that axis are the call's real tokens.
    """

    tensor: str
    token_axis: Literal[-2, 0] = -2
    span: Span = "call"

    def rows(self, array: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """The tap as an observer sees it, a copy: float32 [tokens, width], heads side by side."""
        found = np.moveaxis(array, self.token_axis, 0)[self._tokens(array, past, valid)]
        return found.reshape(len(found), -1).astype(np.float32)

    def with_rows(
        self, array: np.ndarray, rows: np.ndarray, *, past: int, valid: int
    ) -> np.ndarray:
        """A copy of the tensor with other rows; padding and earlier positions stay."""
        changed = array.copy()
        tokens = self._tokens(array, past, valid)
        view = np.moveaxis(changed, self.token_axis, 0)
        view[tokens] = rows.reshape(view[tokens].shape).astype(array.dtype)
        return changed

    def _tokens(self, array: np.ndarray, past: int, valid: int) -> slice:
        if self.span == "cache":
            return slice(past, past + valid)
        if self.span == "call":
            return slice(0, valid)
        last = valid - 1 if array.shape[self.token_axis] > 1 else 0
        return slice(last, last + 1)
