"""The processes that a launcher started, as torchrun tells each of them by its environment."""

import os
from dataclasses import dataclass

from compiler.contracts.errors import RunError

_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among those of one run.

    Attributes:
        rank: This one's number.
        size: How many there are.
        local: How many of them share this machine.
    """

    rank: int
    size: int
    local: int


def current_world() -> World | None:
    """None where no launcher started this process."""
    told = [os.environ.get(name) for name in _TOLD]
    if not all(told):
        return None
    rank, size, local = (int(one) for one in told[:3] if one is not None)
    return World(rank, size, local)


def check_world(world: World | None, ways: int) -> None:
    """Refuse a launch of another number of processes than the bundle has ranks.

    Raises:
        RunError: With the command that fits.
    """
    if world is None or world.size == ways:
        return
    started = f"{world.size} process{'es' if world.size != 1 else ''}"
    ranks = f"{ways} rank{'s' if ways != 1 else ''}"
    command = f"torchrun --nproc-per-node {ways} -m compiler run" if ways > 1 else "compiler run"
    raise RunError(
        f"the bundle has {ranks}, and {started} were started for it",
        hint=f"write `{command} ...`, or run it without torchrun: ranks are threads then",
        code="world-size",
    )
