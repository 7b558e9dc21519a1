"""What stands between a bundle and the device: a driver, by name; docs/vacc.md states its ABI.

The emulator is one. An SDK's registers by entry point in the group `graphlower.vacc_drivers`:

    [project.entry-points."graphlower.vacc_drivers"]
    mine = "my_package.driver:MyDriver"

The environment variable `GRAPHLOWER_VACC_DRIVER` names the one to run with, `emulator` where it is
not set; what follows a colon is the driver's own (`emulator:missing@model.layers.1.mlp.act`).
"""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Protocol, TypeAlias

import numpy as np

from compiler.contracts.errors import ConfigError, MachineLacks, TargetError
from compiler.contracts.tensor_parallel import Collectives

GROUP = "graphlower.vacc_drivers"
VARIABLE = "GRAPHLOWER_VACC_DRIVER"
EMULATOR = "emulator"

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


def driver_names() -> tuple[str, ...]:
    """Every driver that is installed."""
    return tuple(sorted({EMULATOR, *(point.name for point in metadata.entry_points(group=GROUP))}))


def load_driver(spelled: str = "") -> VaccDriver:
    """The driver that is spelled `NAME` or `NAME:OPTIONS`, or that the environment names.

    Raises:
        ConfigError: There is no such driver, or it refuses its options.
        MachineLacks: Its module needs what is not installed.
    """
    name, _, options = (spelled or os.environ.get(VARIABLE) or EMULATOR).partition(":")
    if name == EMULATOR:
        from targets.vacc.faults import emulator

        return emulator(options)
    points = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    if name not in points:
        raise ConfigError(
            f"there is no vacc driver '{name}'",
            hint=f"installed: {', '.join(driver_names())}; a package brings one by entry point "
            f"in the group {GROUP}",
        )
    module, _, attribute = points[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as e:
        raise MachineLacks(f"vacc driver '{name}' cannot be loaded: {e}") from e
    return found(options) if options else found()


def probed() -> Mapping[str, tuple[str, ...]]:
    """Driver -> what it lacks."""
    found: dict[str, tuple[str, ...]] = {}
    for name in driver_names():
        try:
            found[name] = load_driver(name).probe()
        except (ConfigError, MachineLacks) as e:
            found[name] = (e.message,)
    return found
