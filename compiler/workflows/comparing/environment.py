"""What a comparison ran on, for its report."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping

from compiler.config import BuildConfig
from compiler.contracts.weights import CheckpointRef

_PACKAGES = ("torch", "transformers", "onnxruntime", "apache-tvm", "numpy")


def environment_of(
    config: BuildConfig, checkpoint: CheckpointRef, *, inputs: str
) -> dict[str, str]:
    """Model, inputs, machine and versions.

    Args:
        config: What was compared.
        checkpoint: Its weights.
        inputs: Digest of the tokens that were read.
    """
    shape = config.frontend.shape
    return {
        "model": config.name,
        "checkpoint": checkpoint.digest[:16],
        "dtype": config.backend.dtype,
        "window": str(shape.window),
        "context": str(shape.context_or_window),
        "inputs": inputs,
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **_versions(),
    }


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """As Linux names it; the architecture elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            lines = [line for line in stream if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0].partition(":")[2].strip() if lines else platform.machine()
