"""The Hessian of a linear's squared error, H = 2/n X^T X, and its inverse factored for GPTQ.

All linears that read the same values X [n, in] have the same one, whatever their weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.errors import CheckpointError, MachineLacks

if TYPE_CHECKING:
    import torch

# Adding a product to the sum reads and writes in * in numbers, however few tokens it is of.
_BLOCK = 1024
# Damping grows by this factor when a factorization fails, up to the whole mean of the diagonal.
_GROWTH = 10.0
_MOST_DAMPING = 1.0


class Hessian:
    """Accumulates H in float64; the products, of 1024 tokens at a time, are float32's.

    Args:
        device: `cpu`, `cuda` or `cuda:1`, as torch has it (`check_device`).
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._sum: torch.Tensor | None = None
        self._waiting: list[np.ndarray] = []
        self._rows = 0

    def add(self, rows: np.ndarray) -> None:
        """More of what the linear reads, float32 [tokens, in]."""
        self._waiting.append(rows)
        self._rows += len(rows)
        if sum(map(len, self._waiting)) >= _BLOCK:
            self._multiply()

    def matrix(self) -> "torch.Tensor":
        """H, float64 [in, in]."""
        if self._waiting:
            self._multiply()
        assert self._sum is not None, "no rows were added"
        return self._sum * (2 / self._rows)

    def _multiply(self) -> None:
        import torch

        # A copy of torch's own has one alignment, on which the last bits of a product may depend.
        rows = np.concatenate(self._waiting)
        block = torch.tensor(rows, dtype=torch.float32, device=self._device)
        product = (block.T @ block).double()
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._waiting = []


@dataclass(frozen=True)
class FactoredHessian:
    """H, and its damped inverse in the order in which columns are rounded.

    Attributes:
        matrix: H itself, undamped, float64 [in, in].
        order: The columns, int64 [in], as they are taken.
        factor: Upper triangular U with U^T U the inverse of the damped H, both in that order.
        damping: The share of the mean diagonal that was added to the diagonal.
    """

    matrix: "torch.Tensor"
    order: "torch.Tensor"
    factor: "torch.Tensor"
    damping: float


def factored(
    matrix: "torch.Tensor", *, damping: float, act_order: bool, where: str
) -> FactoredHessian:
    """Damp, order and factor H.

    An input that is always zero (a zero on the diagonal) gets a diagonal of one: its weights are
    rounded by themselves. Where H is not positive definite in float64, the damping grows tenfold.

    Args:
        matrix: H, float64 [in, in].
        damping: Share of the mean of the diagonal that is added to it.
        act_order: Take the columns with the largest diagonal first.
        where: The module, for an error.

    Raises:
        CheckpointError: The inputs are not finite, or no damping makes H positive definite.
    """
    import torch

    diagonal = torch.diagonal(matrix)
    if not bool(torch.isfinite(diagonal).all()):
        raise CheckpointError(
            "what it reads on the calibration data holds NaN or infinity",
            where=where,
            hint="mend the checkpoint, or leave this module out of the quantization (exclude)",
            code="non-finite",
        )
    width = len(diagonal)
    order = torch.arange(width, device=matrix.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = matrix[order][:, order]
    dead = diagonal[order] == 0
    while damping <= _MOST_DAMPING:
        damped = ordered.clone()
        shift = damping * diagonal.mean()
        torch.diagonal(damped).add_(torch.where(dead, torch.ones_like(shift), shift))
        factor = _inverse_factor(damped)
        if factor is not None:
            return FactoredHessian(matrix, order, factor, damping)
        damping *= _GROWTH
    raise CheckpointError(
        f"its Hessian is not positive definite, even damped by {damping / _GROWTH:g}",
        where=where,
        hint="give more calibration data (dataset.nsamples), or a larger calib_args.damping",
        code="singular-hessian",
    )


def _inverse_factor(matrix: "torch.Tensor") -> "torch.Tensor | None":
    """Upper triangular U with U^T U = matrix^-1; None where the matrix has no Cholesky factor.

    Of the matrix with rows and columns reversed, L L^T is the factorization; L reversed is an upper
    triangular A with A A^T = matrix, and U is its inverse.
    """
    import torch

    reversed_factor, failure = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(failure) or not bool(torch.isfinite(reversed_factor).all()):
        return None
    factor = reversed_factor.flip(0, 1)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(factor, identity, upper=True)


def check_device(device: str, *, where: str) -> None:
    """Whether torch can compute on `device`.

    Raises:
        MachineLacks: It cannot.
    """
    import torch

    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device.partition(":")[2] or 0)
    if index < count:
        return
    has = f"{count} CUDA devices" if count else "no CUDA device"
    raise MachineLacks(
        f"torch finds {has} here, and {device} is asked for",
        where=where,
        hint="write `device: cpu`",
        code="no-device",
    )
