"""A fact that a pass establishes and the driver checks after every later pass."""

from typing import Protocol

from compiler.contracts.program import Program


class Invariant(Protocol):
    """Holds from the pass that registered it to the end of the pipeline, in each phase and rank."""

    @property
    def name(self) -> str:
        """The name that an error shows; by custom, the pass's."""
        ...

    def violations(self, program: Program) -> tuple[str, ...]:
        """One sentence for each violation, naming the tensor or node; empty when it holds."""
        ...
