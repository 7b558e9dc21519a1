"""What a build decides before it works: target, passes, tools, and the digest of all."""

import hashlib
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.calibration_data import CalibrationSamples
from compiler.config import BuildConfig
from compiler.contracts.errors import CompilerError, CompilerErrors, MachineLacks, raise_all
from compiler.contracts.target_base import Target
from compiler.contracts.weights import CheckpointRef
from compiler.hashing import sha256_of
from compiler.pass_order import PlannedPass
from compiler.text import TOKENIZER_FILES
from compiler.workflows.evaluation_text import tokens_to_evaluate
from compiler.workflows.folding import batch_violations
from compiler.workflows.pass_plan import passes_of
from compiler.workflows.samples import needs_samples, samples_of
from compiler.workflows.sharding import ranks_violations

logger = logging.getLogger(__name__)

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
        tokens: Of the text that the bundle is evaluated on; None where it is not.
        samples: What is calibrated on; None where nothing is.
        kept_as_floats: Modules that `target_loss` leaves out of the quantization.
    """

    target: Target
    passes: tuple[PlannedPass, ...]
    tools: Mapping[str, str]
    digest: str
    tokens: tuple[int, ...] | None = None
    samples: CalibrationSamples | None = None
    kept_as_floats: tuple[str, ...] = ()


def plan_build(
    config: BuildConfig, checkpoint: CheckpointRef, *, note: Callable[[str], None] = logger.info
) -> Plan:
    """Decide everything that a build does; every violation of the target and the order at once.

    Args:
        config: Checked configuration.
        checkpoint: Located.
        note: Told what was decided where the YAML leaves it open.

    Raises:
        CompilerErrors: The target's constraints, the passes' order, the evaluation's text and the
            calibration's data, together.
    """
    target = registry.load_target(config.backend.type, where=config.place("backend.type"))()
    options = config.target_options()
    errors: list[CompilerError] = [
        *target.constraints(options, checkpoint.config),
        *ranks_violations(config, target, checkpoint),
        *batch_violations(config, target),
        *(MachineLacks(lack, where=f"target {target.name}") for lack in _lacks(config, target)),
    ]
    tokens: tuple[int, ...] | None = None
    try:
        tokens = tokens_to_evaluate(config, checkpoint)
    except CompilerError as error:
        errors.append(error)
    samples: CalibrationSamples | None = None
    try:
        samples = samples_of(config, checkpoint, note) if needs_samples(config) else None
    except CompilerError as error:
        errors.append(error)
    passes: tuple[PlannedPass, ...] = ()
    try:
        passes = passes_of(config)
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
        "samples": None if samples is None else samples.digest,
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return Plan(target, passes, tools, digest, tokens, samples)


def _lacks(config: BuildConfig, target: Target) -> tuple[str, ...]:
    """What this machine needs before the target can build here, and run what is evaluated."""
    probe = target.probe()
    is_able = probe.can_build and (probe.can_run or config.evaluate is None)
    return () if is_able else probe.missing


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
