"""config -> the first pass that changes the numbers, on the model's probe."""

from dataclasses import dataclass, replace

from compiler.config import BuildConfig
from compiler.contracts.progress import Progress
from compiler.contracts.provenance import layer_of
from compiler.stages.bisect import Culprit, bisect
from compiler.workflows.plan import locate, plan_build, traced


@dataclass(frozen=True)
class BisectFinding:
    """The pass at fault.

    Attributes:
        name: The pass.
        place: Who asked for it.
        phase: The first phase in which it leaves its contract.
        layer: The decoder layer in which it begins; None outside of them.
        node: The node in which it begins; empty where the graphs share no tensor.
        tensor: The tensor that this node makes.
        said: What is off, with the numbers.
    """

    name: str
    place: str
    phase: str
    layer: int | None
    node: str
    tensor: str
    said: str


@dataclass(frozen=True)
class BisectResult:
    """What a search found.

    Attributes:
        ok: No pass changes the numbers.
        passes: Names of the passes, in order.
        runs: After which passes (from 1) a graph was run.
        finding: The pass at fault.
    """

    ok: bool
    passes: tuple[str, ...]
    runs: tuple[int, ...]
    finding: BisectFinding | None


def bisect_passes(
    config: BuildConfig, *, tolerance: float | None = None, progress: Progress
) -> BisectResult:
    """Search the passes of a build for the first whose output leaves its contract.

    Args:
        config: What would be built; its `verify` is of no account.
        tolerance: Largest absolute difference from the traced graph, in place of the contracts.
        progress: Told of the stages.

    Raises:
        CompilerError: The configuration or checkpoint is wrong, or a pass leaves a graph that
            cannot be run.
    """
    probed = replace(config, verify="probe" if config.verify != "model" else "model")
    checkpoint = locate(probed, progress=progress, is_hashed=False)
    plan = plan_build(probed, checkpoint)
    probe = traced(probed, checkpoint).probe
    assert probe is not None, "numbers are verified on something"
    found = bisect(probe, plan.passes, tolerance=tolerance)
    return BisectResult(
        ok=found.culprit is None,
        passes=tuple(planned.rewrite.name for planned in plan.passes),
        runs=found.runs,
        finding=None if found.culprit is None else _finding(found.culprit),
    )


def _finding(culprit: Culprit) -> BisectFinding:
    divergence = culprit.divergence
    return BisectFinding(
        name=culprit.planned.rewrite.name,
        place=culprit.planned.place,
        phase=culprit.phase,
        layer=layer_of(culprit.breach.output) if divergence is None else divergence.layer,
        node="" if divergence is None else divergence.node,
        tensor=culprit.breach.output if divergence is None else divergence.tensor,
        said=culprit.breach.said,
    )
