"""`onnxruntime`: programs as the passes leave them, unoptimised, where each tap can be seen."""

import importlib.util
from typing import ClassVar

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import Probe, ProgramModel, Target
from compiler.contracts.weights import CheckpointRef


class OnnxRuntimeTarget(Target):
    """Runs programs at any point of the pipeline; builds nothing."""

    name: ClassVar = "onnxruntime"
    opens: ClassVar = "program"

    def probe(self) -> Probe:
        """What it needs: onnxruntime."""
        is_missing = importlib.util.find_spec("onnxruntime") is None
        missing = ("onnxruntime is not installed: pip install onnxruntime",) if is_missing else ()
        return Probe(can_build=False, can_run=not missing, missing=missing)

    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        """Evaluate the parameters; a graph is loaded when it is first run.

        Args:
            model: Both phases, the passes of `variant` having run.
            threads: Ignored: it is one, so that equal arithmetic gives equal bits.
            variant: Ignored: the programs are what it says.

        Raises:
            TargetError: Given something else than programs, or phases of two signatures.
        """
        del threads, variant
        if not isinstance(model, ProgramModel):
            raise TargetError(f"target '{self.name}' opens programs, not {type(model).__name__}")
        from targets.onnxruntime.runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(model)
