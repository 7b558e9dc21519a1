"""`frontend:` -> a located checkpoint, and the programs that the passes start from.

A Hugging Face checkpoint is traced, in a child process; an .onnx file is imported. Either way the
probe, on which passes are measured, is made beside the model where `verify` asks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.config import BuildConfig
from compiler.contracts.model_base import ModelFamily
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.probe import ProbeModel, probe_checkpoint, probe_lengths, random_rows
from compiler.stages.checkpoint import locate_checkpoint, verify_tensors
from compiler.stages.import_onnx import import_onnx, locate_onnx, onnx_file, probe_onnx
from compiler.stages.trace import trace
from compiler.workflows.processes import run_isolated


@dataclass(frozen=True)
class Entered:
    """The programs before the first pass, and what passes are measured on; None where they are not.

    With `verify: model` the probe's programs are the model's own.
    """

    programs: ProgramSet
    probe: ProbeModel | None


def locate(config: BuildConfig, *, progress: Progress, is_hashed: bool = True) -> CheckpointRef:
    """The checkpoint, its files and tensors verified; hashing alone reads weights."""
    if config.frontend.type == "onnx":
        return locate_onnx(
            _onnx_file(config), window=config.frontend.shape.window, is_hashed=is_hashed
        )
    checkpoint = locate_checkpoint(
        config.checkpoint,
        base=config.path.absolute().parent,
        supported=registry.models(),
        progress=progress,
        is_hashed=is_hashed,
    )
    verify_tensors(checkpoint, family_of(checkpoint))
    return checkpoint


def family_of(checkpoint: CheckpointRef) -> ModelFamily:
    """The model family of a located checkpoint."""
    return registry.load_family(str(checkpoint.config["model_type"]))()


def enter(config: BuildConfig, checkpoint: CheckpointRef) -> Entered:
    """The model's programs, and the probe that `verify` asks for."""
    enter_one = _imported if config.frontend.type == "onnx" else _traced
    entered = enter_one(config, checkpoint, has_probe=config.verify == "probe")
    if config.verify != "model":
        return entered
    programs = entered.programs
    return Entered(programs, ProbeModel(programs, checkpoint.rows, _vocabulary_of(programs)))


def _traced(config: BuildConfig, checkpoint: CheckpointRef, *, has_probe: bool) -> Entered:
    """Trace in a child process that takes torch's memory with it."""
    shape = config.frontend.shape
    job = (checkpoint, shape.window, shape.context)
    if not has_probe:
        (programs,) = run_isolated(trace_checkpoints, [job])
        return Entered(programs, None)
    small = probe_checkpoint(
        family_of(checkpoint),
        checkpoint,
        window=shape.window,
        context=shape.context,
        ways=config.frontend.model_kwargs.tp,
    )
    small_job = (small, *probe_lengths(shape.window, shape.context))
    programs, probed = run_isolated(trace_checkpoints, [job, small_job])
    probe = ProbeModel(probed, random_rows(small.tensors), _vocabulary_of(probed))
    return Entered(programs, probe)


def _imported(config: BuildConfig, checkpoint: CheckpointRef, *, has_probe: bool) -> Entered:
    """Read the .onnx file, for which torch is not needed."""
    shape, file = config.frontend.shape, _onnx_file(config)
    programs = import_onnx(file, checkpoint, window=shape.window, context=shape.context)
    if not has_probe:
        return Entered(programs, None)
    return Entered(programs, probe_onnx(file, window=shape.window, context=shape.context))


def _onnx_file(config: BuildConfig) -> Path:
    return onnx_file(config.checkpoint, config.path.absolute().parent)


def trace_checkpoints(
    jobs: Sequence[tuple[CheckpointRef, int, int | None]],
) -> list[ProgramSet]:
    """The child's work: each of (checkpoint, window, context)."""
    return [
        trace(family_of(checkpoint), checkpoint, window=window, context=context)
        for checkpoint, window, context in jobs
    ]


def _vocabulary_of(programs: ProgramSet) -> int:
    """Number of logits."""
    program = next(iter(programs))
    return int(next(spec for spec in program.outputs() if spec.name == "logits").shape[-1])
