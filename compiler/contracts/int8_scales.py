"""The scales of symmetric int8, and what has none."""

from collections.abc import Sequence

import numpy as np

from compiler.contracts.errors import CheckpointError


def largest_code(bits: int) -> int:
    """127 for 8 bits: -128 is not used, so that a weight and its negative round alike."""
    return 2 ** (bits - 1) - 1


def int8_scales(
    block: np.ndarray, *, bits: int = 8, tensors: Sequence[str], first_row: int
) -> np.ndarray:
    """float32 absmax / 127 of each row; 1, which rounds the row to 0, where that is subnormal.

    Args:
        block: float32 [rows, columns], some rows of a matrix.
        bits: Of a code; int8 holds fewer than 8 as well.
        tensors: The checkpoint tensors that it is made of, for the error.
        first_row: Where the block begins in the matrix.

    Raises:
        CheckpointError: A row holds NaN or infinity.
    """
    absmax = np.abs(block).max(axis=1)
    wrong = np.flatnonzero(~np.isfinite(absmax))
    if len(wrong):
        raise CheckpointError(
            f"row {first_row + wrong[0]} holds NaN or infinity, which int8 has no value for",
            where=", ".join(dict.fromkeys(tensors)),
            hint="mend the checkpoint, or leave this module out of the quantization (exclude)",
            code="non-finite",
        )
    scales = absmax / np.float32(largest_code(bits))
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)
