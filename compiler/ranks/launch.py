"""A bundle of several ranks -> one runner, by threads or as one of a launcher's processes."""

import os
from typing import Protocol

import numpy as np

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import BundleError, RunError
from compiler.contracts.program import PHASES, Phase
from compiler.contracts.runner import Runner
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.threads import ThreadedRanks
from compiler.ranks.world import check_world, current_world


class OpenRank(Protocol):
    """What a target opens one rank with. The runner closes its collectives when it is closed."""

    def __call__(self, rank: int, collectives: Collectives, *, threads: int) -> Runner:
        """The runner of one rank.

        Args:
            rank: Which.
            collectives: Its line to the others, for AllReduce and AllGather.
            threads: To compute with.
        """
        ...


def open_ranks(bundle: Bundle, open_rank: OpenRank, *, threads: int | None = None) -> Runner:
    """Open every rank here as threads, or this process's rank where a launcher started it.

    Args:
        bundle: Of several ranks.
        open_rank: Of the target.
        threads: To compute with, for all ranks of this process; None shares the machine's.

    Raises:
        BundleError: A rank lacks a module that another has.
        RunError: Another number of processes was started than there are ranks, or their bundles
            are not the same.
    """
    ways = bundle.ranks
    _check_complete(bundle)
    world = current_world()
    check_world(world, ways)
    if world is None:
        share = max(1, (threads or len(os.sched_getaffinity(0))) // ways)
        return ThreadedRanks(
            ways,
            lambda rank, line: open_rank(rank, line, threads=share),
            is_repeated=_may_repeat(bundle),
        )
    from compiler.ranks.gloo import GlooCollectives

    line = GlooCollectives(world)
    try:
        _check_same(bundle, line)
        share = threads or max(1, len(os.sched_getaffinity(0)) // world.local)
        return open_rank(world.rank, line, threads=share)
    except BaseException:
        line.close()
        raise


def _may_repeat(bundle: Bundle) -> bool:
    """Whether the bundle was built with leave to put a key head on several ranks."""
    match bundle.manifest.config:
        case {"frontend": {"model_kwargs": {"align_qkv": True}}}:
            return True
    return False


def _check_complete(bundle: Bundle) -> None:
    built = {entry.phase for entry in bundle.manifest.modules}
    phases: list[Phase] = [phase for phase in PHASES if phase in built]
    for rank in range(bundle.ranks):
        for phase in phases:
            if bundle.module(phase, rank=rank) is None:
                raise BundleError(
                    f"rank {rank} of {bundle.ranks} has no {phase} module",
                    where=str(bundle.path),
                    hint="build the bundle again",
                    code="bundle-damaged",
                )


def _check_same(bundle: Bundle, line: Collectives) -> None:
    """Refuse processes that opened different bundles: their graphs would not be in step."""
    own = np.frombuffer(bytes.fromhex(bundle.manifest.digest), np.uint8)
    digests = line.all_gather(own).reshape(line.ways, -1)
    if (digests != digests[0]).any():
        raise RunError(
            "the ranks opened different bundles",
            where=str(bundle.path),
            hint="copy one bundle to every machine",
            code="bundles-differ",
        )
