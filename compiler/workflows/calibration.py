"""rewritten programs, calibration data -> programs whose int8 weights GPTQ chose, from the cache.

The cache holds one folder for what decides the result: the checkpoint, the prefill graph and its
weight table, the tokens, the options, and the versions of the tools and of this package's sources.
"""

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from compiler.checkpoints import (
    CalibratedWriter,
    LinearRecord,
    cached_folder,
    is_whole,
    read_calibrated,
)
from compiler.config import BuildConfig
from compiler.contracts.errors import ConfigError
from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef, Weight
from compiler.hashing import user_cache
from compiler.numerics.hessian import check_device
from compiler.numerics.layered_model import LayeredModel
from compiler.stages.calibrate import (
    CalibrationOptions,
    calibrate,
    parts_to_calibrate,
    scales_of,
    with_calibrated,
)
from compiler.workflows.plan import tool_versions

# Beside what a build names: they compute here.
_TOOLS = ("numpy", "onnxruntime")
# Of a digest, in a tensor's name and a folder's.
_DIGITS = 32


def sample_length(config: BuildConfig, *, progress: Progress) -> int:
    """Tokens of a calibration sample: `dataset.seqlen`, which must fit in the context.

    Raises:
        ConfigError: It is written in the YAML, and is more.
    """
    asked, context = config.dataset.seqlen, config.frontend.shape.context_or_window
    if asked <= context:
        return asked
    if "seqlen" in config.dataset.model_fields_set:
        raise ConfigError(
            f"{asked} tokens do not fit in the context of {context}",
            where=config.place("dataset.seqlen"),
            hint=f"write `seqlen: {context}`, or a longer context in frontend.shape",
            code="bad-value",
        )
    progress.note(f"calibration samples have {context} tokens, as the context has")
    return context


def calibrate_programs(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    programs: ProgramSet,
    tokens: np.ndarray,
    *,
    progress: Progress,
) -> tuple[ProgramSet, CheckpointRef, tuple[LinearRecord, ...]]:
    """Put GPTQ's codes and scales in the place of those rounded to nearest.

    Args:
        config: Whose `frontend.quantize.type` asks for GPTQ.
        checkpoint: With its digest.
        programs: As rewritten; left as they are.
        tokens: int64 [samples, length], the length at most the context.
        progress: Told of finished layers.

    Returns:
        The programs, a checkpoint that holds the calibrated tensors, too, and what was done to each
        module.

    Raises:
        MachineLacks: torch has no such device, or the cache cannot be written.
        CheckpointError: Weights or activations are not finite, or a Hessian cannot be factored.
        PassError: The prefill graph has no float twin, or cannot be cut at its layers.
    """
    quantize = config.frontend.quantize
    assert quantize is not None, "nothing is quantized"
    check_device(quantize.device, where=config.place("frontend.quantize.device"))
    arguments = quantize.calib_args
    options = CalibrationOptions(
        act_order=arguments.act_order,
        damping=arguments.damping,
        true_sequential=arguments.true_sequential,
        device=quantize.device,
    )
    prefill = programs.programs["prefill"]
    tokens = np.ascontiguousarray(tokens, np.int64)
    key = _key(checkpoint, prefill, tokens, options)

    def make(folder: Path) -> None:
        _fill(folder, prefill, checkpoint, tokens, options, progress=progress)

    folder = cached_folder(
        user_cache() / "calibrated" / key[:_DIGITS],
        is_whole=is_whole,
        make=make,
        progress=progress,
    )
    found = read_calibrated(folder)
    names = {made: f"{made}@{digest[:_DIGITS]}" for made, digest in found.digests.items()}
    added = {names[made]: tensor for made, tensor in found.tensors.items()}
    extended = CheckpointRef(
        checkpoint.path, checkpoint.config, {**checkpoint.tensors, **added}, checkpoint.digest
    )
    return with_calibrated(programs, names), extended, found.linears


def _fill(
    folder: Path,
    prefill: Program,
    checkpoint: CheckpointRef,
    tokens: np.ndarray,
    options: CalibrationOptions,
    *,
    progress: Progress,
) -> None:
    """Calibrate, writing each module's tensors as they are made."""
    model = LayeredModel(prefill, checkpoint.rows)
    weights: dict[str, Weight] = {}
    for codes in parts_to_calibrate(model):
        weights |= {codes.key: codes, scales_of(codes).key: scales_of(codes)}
    with CalibratedWriter(folder, weights) as writer:
        parts = calibrate(model, checkpoint.rows, tokens, options, progress=progress)
        for part in parts:
            rounded = part.rounded
            writer.add(part.codes.key, rounded.codes)
            writer.add(part.scales.key, rounded.scales.reshape(part.scales.shape))
            energy = rounded.energy or 1.0
            writer.add_record(
                LinearRecord(
                    module=part.module,
                    nearest_error=rounded.nearest_error / energy,
                    error=rounded.error / energy,
                    damping=part.damping,
                    channels=len(rounded.codes),
                    kept=rounded.kept,
                )
            )


def _key(
    checkpoint: CheckpointRef, prefill: Program, tokens: np.ndarray, options: CalibrationOptions
) -> str:
    graph = prefill.model().SerializeToString(deterministic=True)
    decisive = {
        "checkpoint": checkpoint.digest,
        "graph": hashlib.sha256(graph).hexdigest(),
        "weights": {name: weight.key for name, weight in sorted(prefill.weights.items())},
        "shape": list(tokens.shape),
        "tokens": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "options": asdict(options),
        "tools": tool_versions() | {name: importlib.metadata.version(name) for name in _TOOLS},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
