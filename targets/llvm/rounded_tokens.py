"""A value that a kernel rounded to int8 for the products behind it, kept to be shown."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.int8_scales import quantized_rows

if TYPE_CHECKING:
    import tvm_ffi


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
        codes, scales = quantized_rows(self.rows)
        np.from_dlpack(self.scales)[...] = scales[:, 0]
        np.from_dlpack(self.codes)[...] = codes
