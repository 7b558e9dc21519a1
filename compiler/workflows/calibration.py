"""rewritten programs, calibration data -> int8 weights that GPTQ chose, from the cache.

The cache holds one folder for what decides the result: the checkpoint, the prefill graph and its
weight table, the tokens, the options, and the versions of the tools and of this package's sources.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef, Weight
from compiler.hashing import user_cache
from compiler.numerics.hessian import check_device
from compiler.numerics.layered_model import LayeredModel
from compiler.numerics.quantized_weights import scales_of
from compiler.stages.calibrate import (
    CalibrationOptions,
    calibrate,
    parts_to_calibrate,
    with_calibrated,
)
from compiler.workflows.measurement_key import measurement_key

# Of a digest, in a tensor's name and a folder's.
_DIGITS = 32


@dataclass(frozen=True)
class Calibrated:
    """What GPTQ chose, in the user's cache.

    Attributes:
        names: Key of a `quantize` or `scale` expression -> the tensor that takes its place.
        checkpoint: With these tensors beside its own.
        linears: What was done to each module.
    """

    names: Mapping[str, str]
    checkpoint: CheckpointRef
    linears: tuple[LinearRecord, ...]

    def applied(self, programs: ProgramSet) -> ProgramSet:
        """The programs, reading it; at any point of the pipeline behind the quantizing pass."""
        return with_calibrated(programs, self.names)


def calibrate_programs(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    programs: ProgramSet,
    tokens: np.ndarray,
    *,
    progress: Progress,
) -> Calibrated:
    """GPTQ's codes and scales for those that are rounded to nearest.

    Args:
        config: Whose `frontend.quantize.type` asks for GPTQ.
        checkpoint: With its digest.
        programs: As rewritten; left as they are.
        tokens: int64 [samples, length], the length at most the context.
        progress: Told of finished layers.

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
    key = measurement_key(prefill, checkpoint, tokens, options=asdict(options))

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
    return Calibrated(names, extended, found.linears)


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
