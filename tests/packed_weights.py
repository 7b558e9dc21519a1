"""A matrix as `pack-weights` lays it out, by numpy alone: the definition, one element at a time."""

import numpy as np


def packed(matrix: np.ndarray) -> np.ndarray:
    """P[n, k, t, r, c, i] = W[32 n + 16 t + c, 16 q k + q r + i], zero past the ends."""
    quad = 4 // matrix.dtype.itemsize
    outputs, inputs = matrix.shape
    blocks, steps = -(-outputs // 32), -(-inputs // (16 * quad))
    n, k, t, r, c, i = np.ogrid[:blocks, :steps, :2, :16, :16, :quad]
    row, column = 32 * n + 16 * t + c, 16 * quad * k + quad * r + i
    row, column = np.broadcast_arrays(row, column)
    is_inside = (row < outputs) & (column < inputs)
    found = matrix[np.minimum(row, outputs - 1), np.minimum(column, inputs - 1)]
    return np.where(is_inside, found, np.zeros((), matrix.dtype))
