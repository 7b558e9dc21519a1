"""What this machine reaches at its simplest work: reading memory, and one large product by torch.

Measured in the same run as the contenders, block by block with them. None of it is the hardware's
limit; it is what floors are computed from.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from compiler.measuring import read_bandwidth

# Large enough that a product is bound by arithmetic, small enough for half a second.
_SIZE = 2048
_CALLS = 4


@dataclass(frozen=True)
class Roof:
    """The best of the blocks.

    Attributes:
        bandwidth: Bytes a second that numpy reads.
        peaks: `fp32`, `bf16`, `int8` -> operations a second of torch's product (oneDNN's) of two
            square matrices of 2048, of int8 with sums in int32.
    """

    bandwidth: float
    peaks: dict[str, float]

    def seconds(self, kind: str, *, operations: float, moved: float) -> float:
        """The least that such work takes; weights of four bits are multiplied as int8."""
        peak = self.peaks["int8" if kind == "int4" else kind]
        return max(operations / peak, moved / self.bandwidth)


def roof_block(threads: int) -> Callable[[], Roof]:
    """A block that measures all of it once; torch is imported here."""
    import torch

    # Public for GPUs alone; on a CPU it is oneDNN's.
    int8_product = vars(torch)["_int_mm"]
    torch.set_num_threads(threads)
    codes = torch.randint(-127, 128, (_SIZE, _SIZE), dtype=torch.int8)
    single, half = codes.to(torch.float32), codes.to(torch.bfloat16)
    products: dict[str, Callable[[], object]] = {
        "fp32": lambda: single @ single,
        "bf16": lambda: half @ half,
        "int8": lambda: int8_product(codes, codes),
    }
    bandwidth = read_bandwidth(threads)

    def block() -> Roof:
        peaks = {kind: 2 * _SIZE**3 / _best_seconds(call) for kind, call in products.items()}
        return Roof(bandwidth(), peaks)

    return block


def best_of(roofs: list[Roof]) -> Roof:
    """A peak is the highest that was seen."""
    assert roofs, "no roof was measured"
    peaks = {kind: max(roof.peaks[kind] for roof in roofs) for kind in roofs[0].peaks}
    return Roof(max(roof.bandwidth for roof in roofs), peaks)


def _best_seconds(call: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return min(once() for _ in range(_CALLS))
