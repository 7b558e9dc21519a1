"""What a build and a check do before anything heavy: resolve, verify, decide, trace."""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.config import BuildConfig
from compiler.contracts.errors import CompilerError, CompilerErrors, MachineLacks, raise_all
from compiler.contracts.model_base import ModelFamily
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Target
from compiler.contracts.weights import CheckpointRef
from compiler.hashing import sha256_of
from compiler.numerics.probe import ProbeModel, probe_checkpoint, probe_lengths, random_rows
from compiler.pass_order import PlannedPass
from compiler.stages.checkpoint import locate_checkpoint, verify_tensors
from compiler.stages.import_onnx import import_onnx, locate_onnx, onnx_file, probe_onnx
from compiler.stages.trace import trace
from compiler.text import TOKENIZER_FILES
from compiler.workflows.pass_plan import planned_passes
from compiler.workflows.processes import run_isolated

_TOOLS = ("apache-tvm", "apache-tvm-ffi", "onnx", "onnx-graphsurgeon", "torch", "transformers")
_OWN_PACKAGES = ("compiler", "models", "passes", "targets")


@dataclass(frozen=True)
class Plan:
    """What is about to be built.

    Attributes:
        target: The target of `backend.type`.
        passes: The YAML's passes, then the target's, in order.
        tools: Versions of what decides the output.
        digest: sha256 over configuration, checkpoint, tools and the target's own facts.
    """

    target: Target
    passes: tuple[PlannedPass, ...]
    tools: Mapping[str, str]
    digest: str


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


def plan_build(config: BuildConfig, checkpoint: CheckpointRef) -> Plan:
    """Decide everything that a build does; every violation of the target and the order at once.

    Raises:
        CompilerErrors: The target's constraints and the passes' order, together.
    """
    target = registry.load_target(config.backend.type, where=config.place("backend.type"))()
    options = config.target_options()
    errors: list[CompilerError] = [
        *target.constraints(options, checkpoint.config),
        *(MachineLacks(lack, where=f"target {target.name}") for lack in _lacks(target)),
    ]
    passes: tuple[PlannedPass, ...] = ()
    try:
        passes = planned_passes(config, target.passes(options), target=target.name)
    except CompilerErrors as several:
        errors += several.errors
    except CompilerError as error:
        errors.append(error)
    raise_all(errors)
    tools = tool_versions()
    decisive = {
        "config": config.digest(),
        "checkpoint": checkpoint.digest,
        "tokenizer": _tokenizer_digest(checkpoint),
        "tools": dict(tools),
        "target": dict(target.fingerprint(options)),
    }
    text = json.dumps(decisive, sort_keys=True)
    return Plan(target, passes, tools, hashlib.sha256(text.encode()).hexdigest())


def _lacks(target: Target) -> tuple[str, ...]:
    """What this machine needs before the target can build here."""
    probe = target.probe()
    return () if probe.can_build else probe.missing


@dataclass(frozen=True)
class Traced:
    """The two programs as traced, and what passes are measured on; None where they are not."""

    programs: ProgramSet
    probe: ProbeModel | None


def traced(config: BuildConfig, checkpoint: CheckpointRef) -> Traced:
    """Trace in a child process that takes torch's memory with it, the probe as well if wanted."""
    if config.frontend.type == "onnx":
        return _imported(config, checkpoint)
    shape, family = config.frontend.shape, family_of(checkpoint)
    jobs = [(checkpoint, shape.window, shape.context)]
    small: CheckpointRef | None = None
    if config.verify == "probe":
        small = probe_checkpoint(family, checkpoint, window=shape.window, context=shape.context)
        jobs.append((small, *probe_lengths(shape.window, shape.context)))
    programs, *probes = run_isolated(trace_checkpoints, jobs)
    if small is not None:
        vocabulary = vocabulary_of(probes[0])
        return Traced(programs, ProbeModel(probes[0], random_rows(small.tensors), vocabulary))
    if config.verify == "model":
        return Traced(programs, ProbeModel(programs, checkpoint.rows, vocabulary_of(programs)))
    return Traced(programs, None)


def _imported(config: BuildConfig, checkpoint: CheckpointRef) -> Traced:
    """The programs of an .onnx file, for which torch is not needed."""
    shape, file = config.frontend.shape, _onnx_file(config)
    programs = import_onnx(file, checkpoint, window=shape.window, context=shape.context)
    if config.verify == "probe":
        return Traced(programs, probe_onnx(file, window=shape.window, context=shape.context))
    if config.verify == "model":
        return Traced(programs, ProbeModel(programs, checkpoint.rows, vocabulary_of(programs)))
    return Traced(programs, None)


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


def vocabulary_of(programs: ProgramSet) -> int:
    """Number of logits."""
    program = next(iter(programs))
    return int(next(spec for spec in program.outputs() if spec.name == "logits").shape[-1])


def _tokenizer_digest(checkpoint: CheckpointRef) -> str:
    """The files that a bundle copies beside the weights."""
    digest = hashlib.sha256()
    for name in sorted(TOKENIZER_FILES):
        file = checkpoint.path / name
        if file.is_file():
            digest.update(f"{name}\0{sha256_of(file)}\0".encode())
    return digest.hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide a bundle, and a digest of this one's own sources."""
    versions = {name: importlib.metadata.version(name) for name in _TOOLS}
    versions["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    versions["graphlower-sources"] = _sources_digest()
    return versions


def _sources_digest() -> str:
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for file in sorted(f for name in _OWN_PACKAGES for f in (root / name).rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
