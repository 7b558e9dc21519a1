"""The lengths of a probe: those of the model, brought to the probe's window and context."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProbeLengths:
    """Keeps a length on the side of the prefill window and of the context where it was.

    A sliding window or a trained length matters to a graph when some position passes it: in the
    first window, in a later call, or only in the padding of the last one. What the model's lengths
    do, the probe's must do too.

    Attributes:
        window: The probe's prefill window.
        context: The probe's context.
        model_window: The model's prefill window.
        model_context: The model's context; the window where there is no decode.
    """

    window: int
    context: int
    model_window: int
    model_context: int

    def of(self, length: int) -> int:
        """What stands for a length of the model in its probe."""
        if length >= self.model_context + self.model_window - 1:
            return self.context + self.window
        if length >= self.model_context:
            return self.context + self.window // 2
        if length >= self.model_window:
            return (self.context + self.window) // 2
        return self.window // 2 + 1
