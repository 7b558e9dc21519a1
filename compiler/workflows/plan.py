"""What a build decides before it works: target, passes, tools, and the digest of all."""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.config import BuildConfig
from compiler.contracts.errors import CompilerError, CompilerErrors, MachineLacks, raise_all
from compiler.contracts.target_base import Target
from compiler.contracts.weights import CheckpointRef
from compiler.hashing import sha256_of
from compiler.pass_order import PlannedPass
from compiler.text import TOKENIZER_FILES
from compiler.workflows.pass_plan import planned_passes
from compiler.workflows.sharding import ranks_violations

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


def plan_build(config: BuildConfig, checkpoint: CheckpointRef) -> Plan:
    """Decide everything that a build does; every violation of the target and the order at once.

    Raises:
        CompilerErrors: The target's constraints and the passes' order, together.
    """
    target = registry.load_target(config.backend.type, where=config.place("backend.type"))()
    options = config.target_options()
    errors: list[CompilerError] = [
        *target.constraints(options, checkpoint.config),
        *ranks_violations(config, target, checkpoint),
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
