"""The float model that a bundle is held against.

A checkpoint runs as transformers runs it, in float32. An .onnx file is no model of transformers':
its own graph runs, before any pass.
"""

from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import MachineLacks
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weights import CheckpointRef
from compiler.stages.import_onnx import import_onnx

_OF_A_CHECKPOINT = "torch"
_OF_A_GRAPH = "onnxruntime"


@dataclass(frozen=True)
class FloatModel:
    """A located checkpoint; of an .onnx file also the file."""

    checkpoint: CheckpointRef
    onnx: Path | None = None

    @property
    def target(self) -> str:
        """The target that runs it."""
        return _OF_A_CHECKPOINT if self.onnx is None else _OF_A_GRAPH


def open_float(model: FloatModel, bundle: Bundle, *, threads: int | None) -> Runner:
    """A runner of the model that the bundle was built from, in float32.

    Raises:
        MachineLacks: What runs it is not installed.
        TargetError: It cannot be a reference for this model.
    """
    target = registry.load_target(model.target)()
    probe = target.probe()
    if not probe.can_run:
        raise MachineLacks(f"target '{target.name}' cannot run here: {'; '.join(probe.missing)}")
    if model.onnx is None:
        return target.open(model.checkpoint, threads=threads)
    context = bundle.manifest.context if bundle.module("decode") is not None else None
    programs = import_onnx(
        model.onnx, model.checkpoint, window=bundle.manifest.window, context=context
    )
    return target.open(ProgramModel(programs, model.checkpoint), threads=threads)
