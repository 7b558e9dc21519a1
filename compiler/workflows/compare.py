"""config, targets -> report: equal tokens to each, the first target is the reference."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from compiler.comparing.tap_faults import first_fault
from compiler.config import BuildConfig
from compiler.contracts.comparison import (
    Comparison,
    Finding,
    Ladder,
    Report,
    SemanticCheck,
    TapComparison,
)
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.saved_outputs import SavedOutputs, SavedPrompt
from compiler.stages.compare import compare_end_to_end, decode_forced
from compiler.stages.observe import compare_saved, hold_against
from compiler.stages.semantic import check_semantics
from compiler.tap_store import TapFolder
from compiler.workflows.comparing.environment import environment_of
from compiler.workflows.comparing.inputs import digest_of, layers_of, text_tokens
from compiler.workflows.comparing.ladder import check_top, climb
from compiler.workflows.comparing.reference import (
    Reference,
    perplexity_of,
    reference_of,
    save_outputs,
    tokens_to_read,
)
from compiler.workflows.comparing.request import CompareRequest, CompareRun, refuse_contradictions
from compiler.workflows.comparing.saved import compared_files
from compiler.workflows.comparing.targets import (
    TargetChoice,
    TargetOpener,
    missing_reference,
    refusal,
    refuse_onnx,
)
from compiler.workflows.frontend import locate

# What recomputes the taps that a target swallowed.
_INTERPRETER = TargetChoice("onnxruntime")


def compare(
    config: BuildConfig, request: CompareRequest, *, progress: Progress | None = None
) -> Report:
    """Hold every target against the reference.

    Args:
        config: The model; its bundle is built where a target opens bundles.
        request: What to compare.
        progress: Receives the stages.

    Raises:
        ConfigError: The request contradicts itself, or names what is not there.
        RunError: There is nothing to compare, or a file of saved outputs is of another model.
        MachineLacks: The reference cannot run here.
    """
    progress = progress or Progress()
    refuse_contradictions(request)
    missing = _missing(request)
    live = [one for one in request.targets if one.file is None and one not in missing]
    for choice in live:
        refuse_onnx(config, choice)
    top = _ladder_top(request, missing)
    if top is not None:
        check_top(config, top)
    checkpoint = locate(config, progress=progress)
    opener = TargetOpener(config, checkpoint, progress)
    run = CompareRun(config, request, opener, text=text_tokens(checkpoint, request.text))
    for choice in live:
        opener.check(choice)
    files = compared_files(run)
    prompts = tokens_to_read(run, files)
    environment = environment_of(
        config, checkpoint, inputs=digest_of([prompt.tokens for prompt in prompts])
    )
    environment |= {f"{choice} not compared": why for choice, why in missing.items()}
    comparisons, ladder = _held(run, files, prompts, missing)
    return Report(comparisons, ladder, _checked(run, live), environment)


def _missing(request: CompareRequest) -> dict[TargetChoice, str]:
    """Targets that cannot run here, and why; without its reference nothing can be compared."""
    found = {
        choice: why
        for choice in request.targets
        if choice.file is None and (why := refusal(choice)) is not None
    }
    first = request.targets[0]
    if first in found and request.against is None:
        raise missing_reference(first, found[first])
    return found


def _checked(run: CompareRun, live: Sequence[TargetChoice]) -> dict[str, tuple[SemanticCheck, ...]]:
    """What holds of each target without a reference, where it was asked for."""
    if not run.request.is_semantic:
        return {}
    return {str(choice): run.on(choice, partial(_semantics, run)) for choice in live}


def _semantics(run: CompareRun, runner: Runner) -> tuple[SemanticCheck, ...]:
    return check_semantics(
        runner,
        window=run.config.frontend.shape.window,
        seed=run.request.inputs.seed,
        limit=run.limits.max_rel,
    )


def _held(
    run: CompareRun,
    files: Sequence[SavedOutputs],
    prompts: Sequence[SavedPrompt],
    missing: dict[TargetChoice, str],
) -> tuple[tuple[Comparison, ...], Ladder | None]:
    """Every candidate against the reference, and the ladder between them."""
    request = run.request
    candidates = [
        choice
        for choice in request.candidates
        if choice not in missing or not request.allows_missing
    ]
    if not candidates and request.save is None:
        return (), None
    with tempfile.TemporaryDirectory(prefix="graphlower-compare-") as folder:
        scratch = Path(folder)
        kept = scratch / "reference"
        file = files[0] if request.is_against_file else None
        reference = reference_of(run, file, prompts, kept)
        if request.save is not None:
            save_outputs(run, reference, request.save, kept)
        by_path = {file.path: file for file in files}
        found: list[Comparison] = []
        for at, choice in enumerate(candidates):
            if choice in missing:
                found.append(_not_compared(run, choice, missing[choice], reference))
            elif choice.file is not None:
                found.append(_compare_file(run, choice, by_path[choice.file], reference))
            else:
                work = partial(_compare_runner, run, choice, reference, scratch / str(at))
                found.append(run.on(choice, work))
        top = _ladder_top(request, missing)
        ladder = None if top is None else _ladder(run, top, reference, scratch)
    return tuple(found), ladder


def _not_compared(
    run: CompareRun, choice: TargetChoice, why: str, reference: Reference
) -> Comparison:
    finding = Finding(
        "missing",
        str(choice),
        f"{choice} was not compared, it cannot run here: {why}",
        "install what is missing, or leave it out of the verdict with --allow-missing",
    )
    return Comparison(reference.name, str(choice), run.request.level, findings=(finding,))


def _compare_file(
    run: CompareRun, choice: TargetChoice, saved: SavedOutputs, reference: Reference
) -> Comparison:
    """Saved outputs against the reference; what their own error is cannot be told apart."""
    logits = [prompt.logits for prompt in saved.prompts if prompt.logits is not None]
    names = (reference.name, str(choice))
    found = compare_end_to_end(names, reference.chosen, logits, limits=run.limits)
    if not run.has_taps or reference.taps is None or not saved.tap_names:
        return found
    taps = compare_saved(
        reference.taps,
        saved,
        reference.calls,
        layers=layers_of(run.opener.checkpoint),
        level_points=run.points,
        max_error=run.limits.max_rel,
    )
    return _with_taps(run, found, taps)


def _compare_runner(
    run: CompareRun, choice: TargetChoice, reference: Reference, folder: Path, runner: Runner
) -> Comparison:
    ours = perplexity_of(run, runner)
    theirs = reference.perplexity
    found = compare_end_to_end(
        (reference.name, str(choice)),
        reference.chosen,
        [decode_forced(runner, one) for one in reference.trajectories],
        limits=run.limits,
        perplexity=None if ours is None or theirs is None else (theirs, ours),
    )
    if not run.has_taps or reference.taps is None:
        return found
    observed = hold_against(
        reference.taps,
        runner,
        reference.calls,
        level_points=run.points,
        max_local=run.limits.max_local,
        max_rel=run.limits.max_rel,
        scratch=TapFolder(folder),
        open_recompute=lambda: run.opener.open(_INTERPRETER),
    )
    if observed.refusal:
        run.opener.progress.note(f"{choice}: no local errors: {observed.refusal}")
    if observed.missing:
        shown = ", ".join(dict.fromkeys(tap.point for tap in observed.missing))
        run.opener.progress.note(f"{choice} does not hold {shown}, and its program neither")
    changed = replace(found, findings=(*found.findings, *observed.findings))
    return _with_taps(run, changed, observed.taps)


def _with_taps(run: CompareRun, found: Comparison, taps: Sequence[TapComparison]) -> Comparison:
    """The comparison at its level; where a tap is wrong, that is the first thing to know."""
    fault = first_fault(taps) if taps else _no_taps(found)
    findings = found.findings if fault is None else (fault, *found.findings)
    return replace(found, level=run.request.level, taps=tuple(taps), findings=findings)


def _no_taps(found: Comparison) -> Finding:
    return Finding(
        "missing",
        found.candidate,
        f"no tap was compared: {found.reference} and {found.candidate} have none in common",
        "compare with --level end-to-end, or save both at one level",
    )


def _ladder(run: CompareRun, top: TargetChoice, reference: Reference, scratch: Path) -> Ladder:
    return climb(
        run.opener,
        run.request.targets[0],
        top,
        trajectories=reference.trajectories,
        calls=reference.calls,
        limits=run.limits,
        scratch=scratch,
    )


def _ladder_top(request: CompareRequest, missing: dict[TargetChoice, str]) -> TargetChoice | None:
    """The last target that runs here; None where no ladder was asked for, or none of them runs."""
    live = [one for one in request.candidates if one.file is None and one not in missing]
    return live[-1] if request.is_ladder and live else None
