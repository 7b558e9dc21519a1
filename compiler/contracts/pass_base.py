"""What a pass is: a frozen dataclass whose fields are its YAML options, and a `run`.

The driver (`compiler.stages.rewrite`) checks order, structure, signature, report and invariants
around every pass; a pass only matches and rewrites. It imports numpy, onnx and onnx_graphsurgeon,
nothing heavier.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from compiler.contracts.int8_scales import largest_code
from compiler.contracts.invariants import Invariant
from compiler.contracts.program import PHASES, Phase, Program

Arrays = Mapping[str, np.ndarray]

# Unit roundoff u: half a step of the largest value; of int8, half a code of 127.
_UNIT_ROUNDOFF: Mapping[str, float] = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "int8": 0.5 / largest_code(8),
}
# Largest error of logits and caches in units of u, their values being of the order of 1, where all
# layers round. With 16-bit arithmetic a layer's two branches round some twelve times each in a row,
# independently: the error grows by the root of the layers, and was 8 u * sqrt(layers) at most (8 at
# 1, 11 at 2, 39 at 24, 77 at 80 layers). With an int8 cache it was 8 at 4 layers, 20 at 24 and 52
# at 80, and 36 on small graphs whose attention picks single rows.
_ROUNDINGS = 128


@dataclass(frozen=True)
class Contract:
    """What a pass promises about the numbers that leave the graph.

    Attributes:
        kind: `exact` (equal to the bit), `close` (within rtol and atol), `rounds` (within atol,
            and in float64, where nothing is rounded, within 1e-9), or `changes` (the named outputs
            mean something else; `adapt_outputs` states what they must equal).
        rtol: Relative to the entry that is compared.
        atol: Relative to the output's largest magnitude, or to 1 where that is less.
        outputs: The outputs that `changes` names.
    """

    kind: Literal["exact", "close", "rounds", "changes"]
    rtol: float = 0.0
    atol: float = 0.0
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        tolerance = f"rtol={self.rtol:g}, atol={self.atol:g}"
        match self.kind:
            case "exact":
                return "exact"
            case "close":
                return f"close({tolerance})"
            case "rounds":
                return f"rounds(atol={self.atol:g})"
            case "changes":
                return f"changes({', '.join(self.outputs)}; {tolerance})"

    @staticmethod
    def exact() -> "Contract":
        """Arithmetic and its order are left alone."""
        return Contract("exact")

    @staticmethod
    def close(rtol: float, atol: float) -> "Contract":
        """The same value by another order of arithmetic."""
        return Contract("close", rtol=rtol, atol=atol)

    @staticmethod
    def rounds(atol: float) -> "Contract":
        """The same arithmetic in a narrower type: all that differs is rounding."""
        return Contract("rounds", atol=atol)

    @staticmethod
    def roundings(dtype: str) -> "Contract":
        """`rounds` by at most 128 half steps of `dtype`, in which every layer stores values."""
        return Contract.rounds(atol=_ROUNDINGS * _UNIT_ROUNDOFF[dtype])

    @staticmethod
    def changes(*outputs: str, rtol: float = 1e-5, atol: float = 1e-5) -> "Contract":
        """The named outputs mean something else afterwards; `adapt_outputs` says what."""
        return Contract("changes", rtol=rtol, atol=atol, outputs=outputs)


@dataclass(frozen=True)
class Skip:
    """A candidate that the pass declined, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What a pass did to one program: the node that stands for each rewrite, by name, and skips."""

    rewrites: tuple[str, ...] = ()
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class PassRecord:
    """One pass on one phase, as the build reports it; the manifest keeps all but the errors.

    Attributes:
        name: The pass.
        phase: The phase.
        rewrites: How many it made.
        skips: What it declined.
        error: Largest absolute difference that it made to an output of the probe; None where
            numbers were not checked.
        float64_error: Largest absolute difference of the probe's outputs from the traced graph's
            in float64, after the pass.
    """

    name: str
    phase: Phase
    rewrites: int
    skips: tuple[Skip, ...]
    error: float | None = None
    float64_error: float | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of one program. Subclasses are frozen dataclasses; fields are YAML options.

    Class attributes:
        name: `verb-noun`, the YAML's spelling.
        phases: The phases it runs in.
        requires: Passes that must stand earlier.
        after: Passes that, if present, must stand earlier.
        contract: What it promises about the numbers.
        changes_signature: Whether inputs or outputs change; then `adapt_inputs` and
            `adapt_outputs` say what the new ones are, given the old.
    """

    name: ClassVar[str]
    phases: ClassVar[tuple[Phase, ...]] = PHASES
    requires: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    contract: ClassVar[Contract] = Contract.exact()
    changes_signature: ClassVar[bool] = False

    @abstractmethod
    def run(self, program: Program) -> PassReport:
        """Rewrite `program` in place. Match fully first: nothing changes before the last check."""

    def required(self) -> tuple[str, ...]:
        """Passes that must stand earlier, given this pass's options."""
        return self.requires

    def promise(self) -> Contract:
        """The contract, given this pass's options."""
        return self.contract

    def on_probe(self, program: Program) -> "Pass":
        """The pass that does to the probe, `program` before it, what this one does to the model.

        For options that are lengths: the probe's widths are small, and must not change what is
        done.
        """
        del program
        return self

    def invariants(self, program: Program) -> tuple[Invariant, ...]:
        """What must hold from here to the end of the pipeline."""
        del program
        return ()

    def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """Inputs for the graph before the pass -> inputs for `program`, the graph after it.

        A pass that rounds inputs, or outputs, leaves those in float64 unrounded: its `rounds` is
        held to graphs in which nothing is.

        Raises:
            PassError: The inputs lie outside the pass's domain.
        """
        del program
        return dict(old)

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """The weights with which the graph before the pass does what `program`, after it, does.

        For a pass that rounds weights: its contract then speaks of its own arithmetic, and is kept
        or broken whatever the rounding costs. The graph before the pass is run on these values.

        Args:
            old: The parameters of the graph before the pass, by name, as it takes them; in float64
                where nothing else is to be rounded.
            program: The graph after the pass.

        Returns:
            The same names, shapes and dtypes.
        """
        del program
        return dict(old)

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        """What `program`, the graph after the pass, must give where the one before it gave `old`.

        Args:
            old: Outputs of the graph before the pass for `old_inputs`.
            old_inputs: What that graph took.
            program: The graph after the pass, which takes `adapt_inputs(old_inputs, program)`.
        """
        del old_inputs, program
        return dict(old)
