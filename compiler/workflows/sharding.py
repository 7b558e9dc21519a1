"""config and rewritten programs -> the programs of each rank, by the registered pass."""

from compiler.config import SHARD_PASS, BuildConfig, PassSpec, build_passes
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.contracts.program import ProgramSet
from compiler.contracts.target_base import Target
from compiler.contracts.tensor_parallel import sharding_violations
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.probe import ProbeModel
from compiler.stages.rewrite import Rewritten
from compiler.stages.shard import shard
from compiler.workflows.own_passes import listed_errors, recorded


def ranks_violations(
    config: BuildConfig, target: Target, checkpoint: CheckpointRef
) -> list[CompilerError]:
    """What stands against `tp`, and a shard pass in the list of passes."""
    ways = config.frontend.model_kwargs.tp
    found = listed_errors(
        config,
        SHARD_PASS,
        said="once for each rank",
        hint="leave it out, and write `tp:` under frontend.model_kwargs",
        code="shard-pass",
    )
    if ways == 1:
        return found
    place = config.place("frontend.model_kwargs.tp")
    if not target.has_ranks:
        message = f"target '{target.name}' builds one rank, not {ways}"
        found.append(ConfigError(message, where=place, hint="write `tp: 1`", code="one-rank"))
    return found + sharding_violations(
        checkpoint.config,
        ways=ways,
        align_qkv=config.frontend.model_kwargs.align_qkv,
        places={"frontend.model_kwargs.tp": place},
    )


def shard_programs(
    config: BuildConfig, rewritten: Rewritten, probe: ProbeModel | None
) -> tuple[Rewritten, tuple[ProgramSet, ...]]:
    """What was done to the programs, the shard pass included, and one set of them for each rank.

    Raises:
        PassError: The programs cannot be divided.
        CheckFailed: The probe's ranks together do not give what the whole probe gives.
    """
    arguments = config.frontend.model_kwargs
    if arguments.tp == 1:
        return rewritten, (rewritten.programs,)
    place = config.place("frontend.model_kwargs.tp")
    specs = [
        PassSpec(
            SHARD_PASS,
            {"ways": arguments.tp, "rank": rank, "align_qkv": arguments.align_qkv},
            place,
        )
        for rank in range(arguments.tp)
    ]
    sharded = shard(
        rewritten.programs,
        build_passes(specs, folder=config.path.parent),
        place=place,
        invariants=rewritten.invariants,
        is_verified=config.verify != "off",
        probe=probe,
    )
    # The graphs of the other ranks differ by their weights alone.
    return recorded(rewritten, SHARD_PASS, sharded.ranks[0], sharded.records), sharded.ranks
