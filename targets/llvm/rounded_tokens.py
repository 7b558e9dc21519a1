"""A value that a kernel rounded to int8 for the products behind it, kept to be shown."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tvm_ffi

_LARGEST_CODE = np.float32(127)


@dataclass(frozen=True)
class RoundedTokens:
    """What went into `quantize_tokens`, and what came out of it.

    Attributes:
        rows: [tokens, width], a copy: the value's memory may be in use again.
        codes: int8 [tokens, width], the kernel's result.
        scales: float32 [tokens], its other one.
    """

    rows: np.ndarray
    codes: "tvm_ffi.Tensor"
    scales: "tvm_ffi.Tensor"

    def round_again(self) -> None:
        """Write the codes and scales of `rows`, which were replaced: to the bit the kernel's."""
        raw = np.abs(self.rows).max(axis=1) / _LARGEST_CODE
        scales = np.where(raw < np.finfo(np.float32).tiny, np.float32(1), raw)
        np.from_dlpack(self.scales)[...] = scales
        np.from_dlpack(self.codes)[...] = np.rint(self.rows / scales[:, None])
