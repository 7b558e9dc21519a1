"""config -> the first pass that changes the numbers, on a probe, and a graph that shows it."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from compiler.config import BuildConfig
from compiler.contracts.progress import Progress
from compiler.contracts.provenance import layer_of
from compiler.pass_kit.cases import Case, case_of
from compiler.pass_kit.checks import Finding, check_pass
from compiler.pass_kit.counterexample import case_text
from compiler.pass_kit.shrink import smallest_part
from compiler.pass_kit.subgraphs import integer_inputs, observe, part_of
from compiler.pass_order import PlannedPass
from compiler.registry import is_file_pass
from compiler.stages.bisect import Culprit, bisect
from compiler.workflows.frontend import enter, locate
from compiler.workflows.plan import plan_build

_TEST = '''"""{said}"""

from pathlib import Path

from compiler.pass_kit import check_pass, read_case
from compiler.registry import load_pass

FOLDER = Path(__file__).parent


def test_{function}():
    rewriting = load_pass({name!r}, base=FOLDER)(**{options!r})
    assert check_pass(rewriting, read_case(FOLDER / {file!r})).finding is None
'''


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
        written: Files that show it: the smallest graph found, as text and before and after the
            pass as ONNX, and a test that fails until the pass is mended.
    """

    name: str
    place: str
    phase: str
    layer: int | None
    node: str
    tensor: str
    said: str
    written: tuple[str, ...]


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
    config: BuildConfig, *, folder: Path, tolerance: float | None = None, progress: Progress
) -> BisectResult:
    """Search the passes of a build for the first whose output leaves its contract.

    Args:
        config: What would be built; its `verify` decides on what: the model, or else the probe.
        folder: Where what shows the fault is written; made where there is one.
        tolerance: Largest absolute difference from the traced graph, in place of the contracts.
        progress: Told of the stages.

    Raises:
        CompilerError: The configuration or checkpoint is wrong, or a pass leaves a graph that
            cannot be run.
    """
    probed = replace(config, verify="model" if config.verify == "model" else "probe")
    checkpoint = locate(probed, progress=progress, is_hashed=False)
    plan = plan_build(probed, checkpoint)
    probe = enter(probed, checkpoint).probe
    assert probe is not None, "numbers are verified on something"
    found = bisect(probe, plan.passes, tolerance=tolerance)
    finding = None
    if found.culprit is not None:
        case = _smallest_case(found.culprit, vocabulary=probe.vocabulary)
        written = () if case is None else _written(found.culprit, case, config, folder)
        finding = _finding(found.culprit, written)
    return BisectResult(
        ok=finding is None,
        passes=tuple(planned.rewrite.name for planned in plan.passes),
        runs=found.runs,
        finding=finding,
    )


def _finding(culprit: Culprit, written: tuple[str, ...]) -> BisectFinding:
    divergence = culprit.divergence
    return BisectFinding(
        name=culprit.planned.rewrite.name,
        place=culprit.planned.place,
        phase=culprit.phase,
        layer=layer_of(culprit.breach.output) if divergence is None else divergence.layer,
        node="" if divergence is None else divergence.node,
        tensor=culprit.breach.output if divergence is None else divergence.tensor,
        said=culprit.breach.said,
        written=written,
    )


def _smallest_case(culprit: Culprit, *, vocabulary: int) -> Case | None:
    """As little of the graph as still fails alike; None where no graph by itself does."""
    rewriting = culprit.planned.rewrite
    whole = replace(case_of(culprit.before, vocabulary=vocabulary), lengths=(culprit.lengths,))
    finding = check_pass(rewriting, whole, has_float64=False).finding
    if finding is None:
        return None
    part = _layer_part(culprit, whole, finding)
    return smallest_part(rewriting, part, lambda outcome: finding.is_like(outcome.finding)) or part


def _layer_part(culprit: Culprit, whole: Case, finding: Finding) -> Case:
    """The nodes of the layer in which it begins, where they fail by themselves; or the whole."""
    layer = None if culprit.divergence is None else culprit.divergence.layer
    if layer is None:
        return whole
    names = {node.name for node in whole.program.graph.nodes if layer_of(node.name) == layer}
    part = part_of(observe(whole, culprit.lengths), names, inputs=integer_inputs(whole))
    if part is None:
        return whole
    found = check_pass(culprit.planned.rewrite, part, has_float64=False).finding
    return part if finding.is_like(found) else whole


def _written(culprit: Culprit, case: Case, config: BuildConfig, folder: Path) -> tuple[str, ...]:
    """Write the case and its test; the files, as the user can open them."""
    rewriting, name = culprit.planned.rewrite, culprit.planned.rewrite.name
    after = case.copy()
    rewriting.run(after)
    after.prune_parameters()
    function = name.replace("-", "_")
    text, test = folder / f"{name}.onnx.txt", folder / f"test_{function}.py"
    folder.mkdir(parents=True, exist_ok=True)
    text.write_text(case_text(case, remarks=[culprit.breach.said]), encoding="utf-8")
    for which, program in (("before", case.program), ("after", after)):
        onnx.save(program.model(), folder / f"{name}.{which}.onnx")
    test.write_text(
        _TEST.format(
            said=f"{name} on {culprit.phase}: {culprit.breach.said}.",
            function=f"{function}_keeps_what_it_promises",
            name=_spelled(culprit.planned, config, folder),
            options=asdict(rewriting),
            file=text.name,
        ),
        encoding="utf-8",
    )
    names = (text.name, f"{name}.before.onnx", f"{name}.after.onnx", test.name)
    return tuple(os.path.relpath(folder / name) for name in names)


def _spelled(planned: PlannedPass, config: BuildConfig, folder: Path) -> str:
    """The pass as a test in `folder` loads it."""
    name = planned.spelled or planned.rewrite.name
    if not is_file_pass(name):
        return name
    file, _, kind = name.rpartition(":")
    path = config.path.absolute().parent / Path(file).expanduser()
    return f"{os.path.relpath(path, folder.absolute())}:{kind}"
