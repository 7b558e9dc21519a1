"""The sizes of a probe: small ones that do what the model's do.

Lengths are brought to the probe's window and context; what ranks divide keeps its remainder.
"""

from dataclasses import dataclass
from math import gcd, lcm

# Whether a vocabulary is a multiple of this decides whether it is padded.
_VOCABULARY_MULTIPLE = 16


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


def probe_heads(heads: int, kv_heads: int, ways: int) -> tuple[int, int]:
    """Key heads, and queries of each: two and three, or as few more as the ways ask for.

    Key heads have the same common divisor with `ways` as the model's, so that they are repeated as
    often where they do not divide, and their queries divide by the repeats.
    """
    shared = gcd(kv_heads, ways)
    repeats = ways // shared
    is_alike = kv_heads >= 2 * shared and gcd(2 * shared, ways) == shared
    return shared * (2 if is_alike else 1), repeats * max(1, min(heads // kv_heads // repeats, 3))


def probe_vocabulary(vocabulary: int, least: int, ways: int) -> int:
    """The least size that leaves the same over 16 and over the ways as the model's."""
    step = lcm(_VOCABULARY_MULTIPLE, ways)
    return least + (vocabulary - least) % step
