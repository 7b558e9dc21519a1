"""Where an emulated partition meets the other ranks: `all_reduce` and `all_gather` lines."""

from collections.abc import Mapping

import numpy as np

from compiler.contracts.errors import TargetError
from compiler.contracts.tensor_parallel import Collectives
from targets.vacc.tile_program import Meet, TileProgram


def check_ways(program: TileProgram, collectives: Collectives) -> None:
    """Refuse a program for another number of ranks than there are.

    Raises:
        TargetError: With the module of the line.
    """
    for meet in program.meets:
        if meet.ways != collectives.ways:
            raise TargetError(
                f"{meet.collective} is for {meet.ways} ranks, there are {collectives.ways}",
                where=f"{program.name}: {meet.module}",
            )


def meet_ranks(
    meet: Meet, memory: Mapping[str, np.ndarray], collectives: Collectives | None
) -> None:
    """Give this rank's tensor, and put what all ranks made of theirs in its place.

    Args:
        meet: The line.
        memory: Tensors by name.
        collectives: The line to the others; None where nobody joined.

    Raises:
        TargetError: Nobody joined.
        RunError: Another rank is lost.
    """
    if collectives is None:
        raise TargetError(
            f"{meet.collective} waits for {meet.ways} ranks, and this partition runs alone",
            where=meet.module,
        )
    exchange = collectives.all_reduce if meet.collective == "all_reduce" else collectives.all_gather
    memory[meet.result][...] = exchange(memory[meet.argument])
