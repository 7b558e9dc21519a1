"""Collectives between processes, by torch.distributed's gloo: one machine or several.

Each rank gathers what all have and adds it up by itself, in the order of the ranks, so that the
result is to the bit that of the other ranks and of threads.
"""

from datetime import timedelta

import numpy as np

from compiler.contracts.errors import MachineLacks, RunError
from compiler.ranks.arithmetic import joined, total
from compiler.ranks.world import World

# Ranks do equal work between two exchanges; who is this late is not coming.
TIMEOUT_SECONDS = 300.0


class GlooCollectives:
    """The `Collectives` of one process.

    Args:
        world: This process among the others; where to meet stands in the environment.
        timeout: Seconds to wait for another rank.

    Raises:
        MachineLacks: torch is not installed, or was built without gloo.
        RunError: The others do not come.
    """

    def __init__(self, world: World, *, timeout: float = TIMEOUT_SECONDS) -> None:
        try:
            import torch
            import torch.distributed as distributed
        except ImportError as error:
            raise MachineLacks(
                f"processes exchange by torch.distributed, which cannot be imported: {error}",
                hint="pip install torch, or run the bundle without torchrun",
            ) from error
        self.rank, self.ways = world.rank, world.size
        self._torch, self._distributed = torch, distributed
        try:
            distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        except RuntimeError as error:
            raise self._lost(error) from error

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum over the ranks."""
        return total(self._gather(array))

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """The ranks' arrays side by side."""
        return joined(self._gather(array))

    def close(self) -> None:
        """Leave the group."""
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()

    def _gather(self, array: np.ndarray) -> list[np.ndarray]:
        """What each rank gave, moved as bytes: gloo does not know every dtype."""
        own = self._torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
        found = [self._torch.empty_like(own) for _ in range(self.ways)]
        try:
            self._distributed.all_gather(found, own)
        except RuntimeError as error:
            raise self._lost(error) from error
        return [one.numpy().view(array.dtype).reshape(array.shape) for one in found]

    def _lost(self, error: RuntimeError) -> RunError:
        said = " ".join(str(error).split())
        return RunError(
            f"rank {self.rank} lost the others: {said[:200]}",
            hint="see what the other ranks printed; all must run one bundle with the same options",
            code="rank-lost",
        )
