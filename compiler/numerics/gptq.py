"""GPTQ: the codes of a linear's weight, chosen so that its output on calibration data moves least.

    W [out, in], H = 2/n X^T X   ->   codes int8, scales float32

Columns are rounded one after the other, and what rounding a column costs is made up for by those
that are not rounded yet (Frantar et al. 2022, arXiv:2210.17323, algorithm 1: blocks of 128 columns,
the rest updated lazily). Rows do not depend on each other. Scales are symmetric, of a channel or of
each group of inputs: absmax over the largest code, or, below 8 bits, what clips the largest weights
where that costs less. A channel's are fixed beforehand, and so are those of groups whose columns
are taken by activation order: a group then stays contiguous where it is stored. Else a group's
scale is that of its columns as the ones before have left them.

The error is tr((W - Wq) H (W - Wq)^T). A channel whose codes rounded to nearest have the smaller
one keeps those.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.int8_scales import int8_scales, largest_code
from compiler.numerics.hessian import FactoredHessian

if TYPE_CHECKING:
    import torch

_BLOCK = 128
_BITS_OF_INT8 = 8
# Scales that are tried: from absmax over the largest code down to this share of it.
_SHRINKS, _MOST_SHRUNK = 20, 0.4


@dataclass(frozen=True)
class RoundedWeight:
    """Codes and scales of one weight.

    Attributes:
        codes: int8 [out, in].
        scales: float32 [out], or [out, in / group].
        energy: tr(W H W^T): that of the output, to which errors are to be held.
        nearest_error: The error with codes rounded to nearest.
        error: The error with these codes.
        kept: Channels whose codes are those rounded to nearest.
    """

    codes: np.ndarray
    scales: np.ndarray
    energy: float
    nearest_error: float
    error: float
    kept: int


def gptq(
    weight: np.ndarray, hessian: FactoredHessian, *, bits: int, group: int, name: str
) -> RoundedWeight:
    """Round one weight.

    Args:
        weight: float32 [out, in].
        hessian: Of what the linear reads.
        bits: Of a code.
        group: Inputs that share a scale, a divisor of `in`.
        name: The tensor, for an error.

    Raises:
        CheckpointError: The weight holds NaN or infinity.
    """
    import torch

    device = hessian.matrix.device
    wide = torch.tensor(weight, dtype=torch.float64, device=device)
    flat = weight.reshape(-1, group)
    scales = int8_scales(flat, bits=bits, tensors=(name,), first_row=0)
    nearest = np.rint(flat / scales[:, None]).reshape(weight.shape)
    scales = scales.reshape(len(weight), -1)
    codes, found = _rounded(wide, hessian, bits=bits, group=group)

    def errors(codes: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
        off = wide - codes * scales.repeat_interleave(group, dim=1)
        return ((off @ hessian.matrix) * off).sum(1)

    plain_codes = torch.tensor(nearest, dtype=torch.float64, device=device)
    plain_scales = torch.tensor(scales, dtype=torch.float64, device=device)
    plain, chosen = errors(plain_codes, plain_scales), errors(codes, found)
    keep = plain <= chosen
    codes = torch.where(keep[:, None], plain_codes, codes)
    found = torch.where(keep[:, None], plain_scales, found)
    shape = (len(weight),) if group == weight.shape[1] else scales.shape
    return RoundedWeight(
        codes=codes.to(torch.int8).cpu().numpy(),
        scales=found.float().cpu().numpy().reshape(shape),
        energy=float(((wide @ hessian.matrix) * wide).sum()),
        nearest_error=float(plain.sum()),
        error=float(torch.minimum(plain, chosen).sum()),
        kept=int(keep.sum()),
    )


def _rounded(
    weight: "torch.Tensor", hessian: FactoredHessian, *, bits: int, group: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Codes [out, in] and scales [out, in / group], in the weight's own order of columns."""
    import torch

    order, factor, largest = hessian.order, hessian.factor, largest_code(bits)
    importance = torch.diagonal(hessian.matrix)
    # A column of the weight is a row here, and lies in one piece.
    columns = weight.T
    left = columns[order].contiguous()
    groups = (order // group).tolist()
    scales = torch.stack(
        [
            _scales(columns[low : low + group], importance[low : low + group], bits=bits)
            for low in range(0, len(left), group)
        ]
    )
    is_fixed = group == len(left) or groups != sorted(groups)
    codes = torch.empty_like(left)
    for start, stop in _spans(len(left), group):
        block = left[start:stop]
        lost = torch.empty_like(block)
        with _one_thread():
            for row in range(stop - start):
                column = start + row
                if not is_fixed and column % group == 0:
                    members = slice(column, column + group)
                    scales[groups[column]] = _scales(
                        left[members], importance[order[members]], bits=bits
                    )
                scale = scales[groups[column]]
                codes[column] = torch.clamp(torch.round(block[row] / scale), -largest, largest)
                lost[row] = (block[row] - codes[column] * scale) / factor[column, column]
                block[row + 1 :].addr_(factor[column, column + 1 : stop], lost[row], alpha=-1)
        left[stop:] -= factor[start:stop, stop:].T @ lost
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.T, scales.T


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small operations: threads would wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _spans(width: int, group: int) -> list[tuple[int, int]]:
    """Blocks of at most 128 columns, in each of which a group lies whole or starts at its start."""
    step = _BLOCK // group * group if group <= _BLOCK else _BLOCK
    edges = range(0, width, step if group <= _BLOCK else group)
    found: list[tuple[int, int]] = []
    for edge in edges:
        end = min(width, edge + (step if group <= _BLOCK else group))
        found += [(low, min(low + _BLOCK, end)) for low in range(edge, end, _BLOCK)]
    return found


def _scales(columns: "torch.Tensor", importance: "torch.Tensor", *, bits: int) -> "torch.Tensor":
    """The scale of each channel, as float32 has it, in float64 [out].

    Few codes are spent better when a channel's largest weights are clipped: below 8 bits the scale
    is shrunk to where the squared error, weighted by the inputs' sizes, is least. At 8 bits that
    was measured to make GPTQ's error larger.

    Args:
        columns: The weights that share it, float64 [inputs, out].
        importance: Of each input, its entry on the Hessian's diagonal.
        bits: Of a code.
    """
    import torch

    largest = largest_code(bits)
    whole = (columns.abs().amax(0).float() / largest).double()
    tiny = torch.finfo(torch.float32).tiny
    whole = torch.where(whole < tiny, torch.ones_like(whole), whole)
    if bits == _BITS_OF_INT8:
        return whole
    best, least = whole, torch.full_like(whole, torch.inf)
    for step in range(_SHRINKS):
        scale = (whole * (1 - step * (1 - _MOST_SHRUNK) / (_SHRINKS - 1))).float().double()
        codes = torch.clamp(torch.round(columns / scale), -largest, largest)
        error = importance @ (columns - codes * scale).square()
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best
