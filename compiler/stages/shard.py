"""ProgramSet -> one ProgramSet a rank: each its share, and all together what the whole was.

The pass is run once for each rank on a copy of the programs after the last pass. Each rank's graph
is checked as after any pass, invariants included; every entry of every weight must lie on some
rank; and the probe's ranks, run in step, must give what the whole probe gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.contracts.errors import PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassRecord, PassReport
from compiler.contracts.placement import Placement, placements
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.numerics.probe import ProbeModel
from compiler.numerics.ranks_run import RankProgram, ranks_error
from compiler.own_pass import refuse_unsound, run_on_copy, saying


@dataclass(frozen=True)
class Sharded:
    """The programs of each rank, in order, and what the pass did to one of them."""

    ranks: tuple[ProgramSet, ...]
    records: tuple[PassRecord, ...]


def shard(
    programs: ProgramSet,
    shards: Sequence[Pass],
    *,
    place: str = "",
    invariants: Mapping[Phase, Sequence[Invariant]],
    is_verified: bool = True,
    probe: ProbeModel | None = None,
) -> Sharded:
    """Give each rank its share.

    Args:
        programs: After the last pass; left as they are.
        shards: The pass of each rank, in order.
        place: Who asked for it, for errors.
        invariants: What must hold of each rank's graph.
        is_verified: Without it nothing is checked but that the pass fired (`verify: off`).
        probe: The probe after the last pass, which is sharded beside the model; None measures none.

    Raises:
        PassError: The pass declined the graph, or left one that is not sound.
        CheckFailed: The ranks together do not give what the whole gives.
    """
    found: list[dict[Phase, Program]] = [{} for _ in shards]
    records: list[PassRecord] = []
    for phase, whole in programs.programs.items():
        error: float | None = None
        with saying(shards[0], phase, place=place):
            reports = [_sharded(one, whole) for one in shards]
            for rank, (program, report) in enumerate(reports):
                found[rank][phase] = program
                if is_verified:
                    refuse_unsound(whole, program, report, invariants.get(phase, ()))
            if is_verified:
                _check_cover(whole, [program for program, _ in reports])
            if probe is not None:
                error = _measured(probe, phase, shards, reports[0][1])
        report = reports[0][1]
        records.append(PassRecord(shards[0].name, phase, len(report.rewrites), report.skips, error))
    return Sharded(tuple(ProgramSet(one) for one in found), tuple(records))


def _sharded(rewriting: Pass, whole: Program) -> tuple[Program, PassReport]:
    """One rank's program."""
    hint = "build one rank (tp: 1), or leave out the pass that made it so"
    return run_on_copy(rewriting, whole, hint=hint, code="not-sharded")


def _check_cover(whole: Program, ranks: Sequence[Program]) -> None:
    """Each stretch of a weight that is in the whole must be on some rank."""
    for name, weight in whole.weights.items():
        shares = [rank.weights[name] for rank in ranks if name in rank.weights]
        if len(shares) != len(ranks):
            raise PassError(f"the parameter {name} is not on every rank", code="not-covered")
        for axis in range(len(weight.shape)):
            wanted = _stretches(placements(weight, axis))
            given = _stretches([one for share in shares for one in placements(share, axis)])
            if wanted != given:
                source, start, stop = min(set(wanted) ^ set(given))
                raise PassError(
                    f"{start}:{stop} of {source} on axis {axis} of {name} is in the whole or on "
                    "the ranks alone",
                    code="not-covered",
                )


def _stretches(places: Sequence[Placement]) -> list[tuple[str, int, int]]:
    """(source, start, stop) of everything that lies somewhere, once, neighbours joined."""
    found: list[tuple[str, int, int]] = []
    for source, start, stop in sorted((p.source, p.first, p.first + p.count) for p in places):
        if found and found[-1][0] == source and start <= found[-1][2]:
            found[-1] = (source, found[-1][1], max(stop, found[-1][2]))
            continue
        found.append((source, start, stop))
    return found


def _measured(probe: ProbeModel, phase: Phase, shards: Sequence[Pass], report: PassReport) -> float:
    """Shard the probe in the same way, and run its ranks in step."""
    whole = probe.programs.programs[phase]
    ranks: list[RankProgram] = []
    for one in shards:
        program, probed = _sharded(one, whole)
        names = {*report.rewrites} ^ {*probed.rewrites}
        if names:
            raise PassError(
                f"rewrites {min(names)} in the model or its probe alone",
                code="probe-differs",
                hint="a pass must not decide by sizes",
            )
        ranks.append(RankProgram(one, program))
    return ranks_error(whole, ranks, probe.read, vocabulary=probe.vocabulary)
