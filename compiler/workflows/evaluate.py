"""bundle, text -> how well it predicts the text, and what it lost against the float model."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from compiler import registry
from compiler.config import CompareLimits
from compiler.contracts.bundle import MANIFEST_FILE, Bundle
from compiler.contracts.errors import (
    BundleError,
    CheckpointError,
    MachineLacks,
    RunError,
    TargetError,
)
from compiler.contracts.evaluation import Evaluation
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner, WindowedRunner
from compiler.contracts.weights import CheckpointRef
from compiler.stages import evaluate as evaluate_stage
from compiler.stages.checkpoint import locate_checkpoint
from compiler.stages.import_onnx import locate_onnx, onnx_file
from compiler.stages.open_bundle import open_bundle
from compiler.stages.perplexity import perplexity
from compiler.workflows.comparing.inputs import digest_of
from compiler.workflows.evaluation_text import tokens_of_file
from compiler.workflows.float_model import FloatModel, open_float

_PYPI = "pypi:"
_NO_CHECKPOINT = (
    "perplexity alone: name the checkpoint that the bundle was built from with --checkpoint to "
    "hold it against the float model"
)


@dataclass(frozen=True)
class EvaluateRequest:
    """What is to be measured.

    Attributes:
        text: A UTF-8 file.
        tokens: Read at most so many of its tokens; None for all.
        checkpoint: What the bundle was built from; None leaves it to the manifest.
        threads: To compute with; None leaves it to the targets.
        needs_reference: Whether perplexity alone is not enough.
    """

    text: Path
    tokens: int | None = None
    checkpoint: str | None = None
    threads: int | None = None
    needs_reference: bool = False


def evaluate(
    path: Path, request: EvaluateRequest, *, progress: Progress | None = None
) -> Evaluation:
    """Read a text with a bundle and, where its checkpoint is to be had, with the float model.

    Args:
        path: The bundle's folder.
        request: What to measure.
        progress: Receives notes and the tokens.

    Raises:
        BundleError: It is no bundle, or damaged.
        ConfigError: The text cannot be read, or is too short.
        CheckpointError: The checkpoint is not the one that the bundle was built from.
        MachineLacks: The bundle cannot run here.
        RunError: The float model is needed, and cannot be had.
    """
    progress = progress or Progress()
    bundle = open_bundle(path)
    tokens = tokens_of_file(request.text, bundle.path, limit=request.tokens, where="--text")
    model = _float_model(bundle, request.checkpoint, progress)
    if model is None and request.needs_reference:
        raise RunError(
            "the increase of the perplexity is over the float model's, which is not at hand",
            where=str(path),
            hint="name the checkpoint that the bundle was built from with --checkpoint",
        )
    found = evaluate_bundle(bundle, tokens, model=model, threads=request.threads, progress=progress)
    if found.reference is None and request.needs_reference:
        raise RunError(found.note, where=str(path))
    return found


def evaluate_bundle(
    bundle: Bundle,
    tokens: tuple[int, ...],
    *,
    model: FloatModel | None,
    threads: int | None = None,
    progress: Progress,
) -> Evaluation:
    """Measure an opened bundle; without a model, or where it cannot run, perplexity alone."""
    limits, context = _limits(bundle), bundle.manifest.context
    progress.note(f"evaluating {bundle.manifest.name} on {len(tokens)} tokens")
    with ExitStack() as stack:
        runner = stack.enter_context(closing(_opened(bundle, threads=threads)))
        _note_speed(runner, progress)
        reference, note = None, _NO_CHECKPOINT
        try:
            if model is not None:
                reference = open_float(model, bundle, threads=threads)
                stack.enter_context(closing(reference))
        except (MachineLacks, TargetError) as error:
            note = f"perplexity alone: {error.message}"
        if model is None or reference is None:
            ours, figures = perplexity(runner, tokens, context=context, progress=progress), None
        else:
            note = ""
            ours, figures = evaluate_stage.evaluate(
                runner,
                reference,
                tokens,
                context=context,
                name=model.target,
                limits=limits.model_dump(),
                progress=progress,
            )
    return Evaluation(
        bundle=bundle.manifest.digest,
        inputs=digest_of([tokens]),
        tokens=len(tokens),
        context=context,
        perplexity=ours,
        reference=figures,
        note=note,
    )


def _opened(bundle: Bundle, *, threads: int | None) -> Runner:
    where = str(bundle.path / MANIFEST_FILE)
    target = registry.load_target(bundle.manifest.target, where=where)()
    probe = target.probe()
    if not probe.can_run:
        raise MachineLacks(
            f"target '{target.name}' cannot run here: {'; '.join(probe.missing)}",
            where=str(bundle.path),
            hint="install what is missing, or evaluate the bundle where it can run",
        )
    return target.open(bundle, threads=threads)


def _note_speed(runner: Runner, progress: Progress) -> None:
    if isinstance(runner, WindowedRunner) and not runner.has_every_row:
        progress.note(
            "the bundle gives the last token's logits alone, so it reads token by token; one built "
            "with `passes: {drop: [insert-strided-slice]}` reads whole windows"
        )


def _float_model(bundle: Bundle, named: str | None, progress: Progress) -> FloatModel | None:
    """The checkpoint that was named, else that of the manifest where anyone can fetch it."""
    frontend = bundle.manifest.config.get("frontend")
    written = frontend.get("checkpoint") if isinstance(frontend, Mapping) else None
    is_onnx = isinstance(frontend, Mapping) and frontend.get("type") == "onnx"
    if named is None and isinstance(written, str) and written.startswith(_PYPI):
        named = written
    if named is None:
        return None
    if is_onnx:
        file = onnx_file(named, Path.cwd())
        checkpoint = locate_onnx(file, window=bundle.manifest.window)
        model = FloatModel(checkpoint, file)
    else:
        model = FloatModel(locate_checkpoint(named, base=Path.cwd(), progress=progress))
    _check_digest(bundle, model.checkpoint, named)
    return model


def _check_digest(bundle: Bundle, checkpoint: CheckpointRef, named: str) -> None:
    built_from = bundle.manifest.checkpoint.get("sha256")
    if checkpoint.digest == built_from:
        return
    raise CheckpointError(
        f"it is not the checkpoint that {bundle.manifest.name} was built from: its content has the "
        f"sha256 {checkpoint.digest}, the manifest has {built_from}",
        where=named,
        hint="name that one, or build the bundle again from this one",
        code="other-checkpoint",
    )


def _limits(bundle: Bundle) -> CompareLimits:
    """`compare` of the configuration that the bundle was built from."""
    try:
        return CompareLimits.model_validate(bundle.manifest.config.get("compare"))
    except ValidationError as error:
        raise BundleError(
            "its configuration has no limits of `compare`",
            where=str(bundle.path / MANIFEST_FILE),
            hint="another version of graphlower built it: build it again",
        ) from error
