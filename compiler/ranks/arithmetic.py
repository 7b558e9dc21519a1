"""What the collectives compute, in one order, so that every rank and every way to run agree."""

from collections.abc import Sequence

import numpy as np


def total(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in the order given, in float32 at least, rounded once to the arrays' dtype."""
    wide = np.result_type(arrays[0].dtype, np.float32)
    result = arrays[0].astype(wide)
    for array in arrays[1:]:
        result += array
    return result.astype(arrays[0].dtype, copy=False)


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One behind the other along the last axis."""
    return np.concatenate(arrays, axis=-1)
