"""What stands between a bundle and the device: a driver; docs/vacc.md states its ABI."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from compiler.contracts.errors import TargetError
from compiler.contracts.tensor_parallel import Collectives

# (module, composite, the results that the run left) -> what to go on with instead, or None
Watch: TypeAlias = Callable[[str, str, Sequence[np.ndarray]], Sequence[np.ndarray] | None]


class LoadedPartition(ABC):
    """A partition on the device.

    Attributes:
        argument_dtypes: Of what `call` takes, in order.
    """

    argument_dtypes: tuple[np.dtype, ...]

    @abstractmethod
    def call(self, arguments: Sequence[np.ndarray], watch: Watch | None = None) -> list[np.ndarray]:
        """Run it once.

        Args:
            arguments: In the order of the program's `arg`, `weight` and `state` lines: host arrays,
                contiguous. A weight is the same array in every call, and may stay on the device
                after the first; a state's new content is written to the array given.
            watch: Shown what each `run` line left; a driver that cannot show raises.

        Returns:
            What the `return` line names; for a state the array given.

        Raises:
            TargetError: The device refuses, or cannot be watched.
        """

    def join(self, collectives: Collectives) -> None:
        """Take the line to the other ranks, once, before the first call.

        Of a bundle of one rank it is not called. `all_reduce` and `all_gather` lines of the program
        go through it, or through the driver's own between the same ranks.

        Args:
            collectives: This rank's.

        Raises:
            TargetError: The driver runs one rank alone; or the program is for another number.
        """
        raise TargetError(
            f"the driver runs one rank, the bundle has {collectives.ways}",
            hint="name another driver, or build with `tp: 1`",
        )


class VaccDriver(Protocol):
    """One way to run tile programs.

    Attributes:
        name: As its entry point is called.
    """

    name: str

    def probe(self) -> tuple[str, ...]:
        """What is missing here before it can run, each with how to get it; empty: nothing."""
        ...

    def compile(self, tiles: str) -> bytes:
        """What `load` takes, of a tile program's text; at build time, needs no device.

        Raises:
            TargetError: It cannot take the program.
        """
        ...

    def load(self, compiled: bytes, *, where: str) -> LoadedPartition:
        """Put a partition on the device.

        Args:
            compiled: As `compile` gave it.
            where: The file that it was read from, for errors.
        """
        ...
