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


def quantized_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are rounded as they come: a head of a cached token, or what a linear takes.

    Args:
        rows: Float [.., d], each row by its own scale.

    Returns:
        Codes int8 [.., d], to nearest and ties to even, and scales [.., 1] as `int8_scales` has
        them. Of float64, in which nothing is rounded, codes are float64 quotients.
    """
    absmax: np.ndarray = np.abs(rows).max(axis=-1, keepdims=True)
    scales: np.ndarray = absmax / np.asarray(largest_code(8), rows.dtype)
    scales[scales < np.finfo(np.float32).tiny] = 1
    entries: np.ndarray = rows / scales
    codes = entries if rows.dtype == np.float64 else np.rint(entries).astype(np.int8)
    return codes, scales
