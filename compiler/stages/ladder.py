"""The whole difference between a reference and a target, as a sum of steps.

Each rung is the model at one point of the way: as transformers runs it, as traced, after each group
of passes, as the target runs it. On equal tokens, a step's change is the logits of its rung less
those of the rung before; the changes add up to the whole difference, and each one's projection on
it is its signed share.
"""

from collections.abc import Callable, Sequence

import numpy as np

from compiler.comparing.measures import next_token_kl
from compiler.contracts.comparison import LadderStep

# Reads the logits [steps, vocabulary] of one rung; a mapped file does, it is read row by row.
ReadLogits = Callable[[], np.ndarray]


def ladder_steps(
    reference: ReadLogits, rungs: Sequence[tuple[str, ReadLogits]]
) -> list[LadderStep]:
    """What each rung changed.

    Args:
        reference: The logits that all rungs are held against.
        rungs: Name and logits, in order; the last is the whole way.

    Returns:
        A step for each rung. Where nothing differs from the reference in the end, all shares are 0;
        where a difference is no number, the figures that it enters are NaN.
    """
    first, last = reference(), rungs[-1][1]()
    power = _inner_product((first, last), (first, last))
    steps: list[LadderStep] = []
    before = first
    for name, read in rungs:
        after = read()
        square = _inner_product((before, after), (before, after))
        inner = _inner_product((before, after), (first, last))
        divergences = [next_token_kl(a, b) for a, b in zip(first, after, strict=True)]
        steps.append(
            LadderStep(
                name=name,
                max_abs=_largest(before, after),
                rms=float(np.sqrt(square / first.size)),
                share=inner / power if power else 0.0,
                total_max_abs=_largest(first, after),
                kl=float(np.mean(divergences)),
            )
        )
        before = after
    return steps


def _inner_product(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> float:
    """Of two differences, each given as (before, after)."""
    rows = zip(*one, *other, strict=True)
    return float(sum(_difference(a, b) @ _difference(c, d) for a, b, c, d in rows))


def _largest(before: np.ndarray, after: np.ndarray) -> float:
    # Not Python's `max`, which may drop a NaN.
    rows = [np.abs(_difference(a, b)).max() for a, b in zip(before, after, strict=True)]
    return float(np.max(rows))


def _difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of two infinities
        return after.astype(np.float64) - before


def largest_step(steps: Sequence[LadderStep]) -> int:
    """The step that changed most; one that gives no numbers changed most of all."""
    sizes = [step.rms if np.isfinite(step.rms) else np.inf for step in steps]
    return int(np.argmax(sizes))
