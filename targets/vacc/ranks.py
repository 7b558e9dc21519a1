"""A bundle of several ranks: one runner a rank, which meet in the lines of their tile programs."""

from compiler.contracts.bundle import Bundle
from compiler.contracts.runner import Runner
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.launch import open_ranks
from targets.vacc.runner import VaccRunner


def open_vacc_ranks(bundle: Bundle) -> Runner:
    """All ranks as threads of this process, or its own rank where torchrun started it.

    Raises:
        BundleError: A rank is not complete.
        RunError: Another number of processes was started than there are ranks.
        TargetError: The driver runs one rank alone.
    """

    def open_rank(rank: int, collectives: Collectives, *, threads: int) -> Runner:
        del threads  # how a driver computes is its own
        return VaccRunner(bundle, rank=rank, collectives=collectives)

    return open_ranks(bundle, open_rank)
