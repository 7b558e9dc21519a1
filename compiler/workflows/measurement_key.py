"""What decides a measurement on calibration data, in one digest: its key in the user's cache."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping

import numpy as np

from compiler.contracts.program import Program
from compiler.contracts.weights import CheckpointRef
from compiler.workflows.plan import tool_versions

# Beside what a build names: they compute here.
_TOOLS = ("numpy", "onnxruntime")
Option = bool | int | float | str


def measurement_key(
    program: Program,
    checkpoint: CheckpointRef,
    tokens: np.ndarray,
    *,
    options: Mapping[str, Option] | None = None,
) -> str:
    """sha256 over the graph, its weights' expressions, the checkpoint, the tokens and the tools.

    Args:
        program: What runs on the tokens.
        checkpoint: Its weights, hashed.
        tokens: int64 [samples, length].
        options: Of the measurement.
    """
    assert checkpoint.digest, "a hashed checkpoint"
    graph = program.model().SerializeToString(deterministic=True)
    decisive = {
        "checkpoint": checkpoint.digest,
        "graph": hashlib.sha256(graph).hexdigest(),
        "weights": {name: weight.key for name, weight in program.weights.items()},
        "shape": list(tokens.shape),
        "tokens": hashlib.sha256(np.ascontiguousarray(tokens, "<i8").tobytes()).hexdigest(),
        "options": dict(options or {}),
        "tools": tool_versions() | {name: importlib.metadata.version(name) for name in _TOOLS},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
