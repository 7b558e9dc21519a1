"""A bundle of several ranks on CPUs: one virtual machine a rank, each by its own thread."""

from compiler.contracts.bundle import Bundle
from compiler.contracts.runner import Runner
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.launch import open_ranks
from targets.llvm.runner import LLVMRunner


def open_llvm_ranks(bundle: Bundle, *, threads: int | None) -> Runner:
    """All ranks as threads of this process, or its own rank where torchrun started it.

    Raises:
        BundleError: A rank is not complete.
        RunError: Another number of processes was started than there are ranks.
    """

    def open_rank(rank: int, collectives: Collectives, *, threads: int) -> Runner:
        return LLVMRunner(bundle, threads=threads, rank=rank, collectives=collectives)

    return open_ranks(bundle, open_rank, threads=threads)
