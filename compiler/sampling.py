"""The next token from logits: greedy, or drawn at a temperature from the nucleus, reproducibly.

Nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration"
(https://arxiv.org/abs/1904.09751).
"""

import numpy as np

_FIRST_GUESS = 256


class Sampler:
    """Draws one token after the other; two samplers with equal settings draw the same.

    Args:
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_p: Only the most probable tokens that together reach this share are drawn; in (0, 1].
        seed: Seed of the generator (PCG64), not negative.
    """

    def __init__(self, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.Generator(np.random.PCG64(seed))

    def pick(self, logits: np.ndarray) -> int:
        """A token id from logits [vocabulary], which hold no NaN; the lowest id wins a tie."""
        if self._temperature == 0:
            return int(np.argmax(logits))
        probabilities = _softmax(logits, self._temperature)
        kept = _nucleus(probabilities, self._top_p)
        cumulative = np.cumsum(probabilities[kept])
        drawn = self._random.random() * cumulative[-1]
        # The product may round up to the sum itself.
        return int(kept[min(int(np.searchsorted(cumulative, drawn, side="right")), len(kept) - 1)])


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Ids of the fewest tokens that together reach `top_p`; of equal tokens the lower ids first."""
    if top_p == 1:
        return np.flatnonzero(probabilities)
    # Sorting a whole vocabulary takes longer than many models' token; the nucleus is mostly small.
    count = min(_FIRST_GUESS, len(probabilities))
    while True:
        smallest = np.partition(probabilities, -count)[-count]
        candidates = np.flatnonzero(probabilities >= smallest)
        ordered = candidates[np.argsort(-probabilities[candidates], kind="stable")]
        reached = int(np.searchsorted(np.cumsum(probabilities[ordered]), top_p))
        if reached < len(ordered) or len(ordered) == len(probabilities):
            return ordered[: reached + 1]
        count = min(8 * count, len(probabilities))


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    shifted = logits.astype(np.float64) - np.max(logits)
    # A tiny temperature sends every other logit to -inf, as it should.
    with np.errstate(over="ignore"):
        weights = np.exp(shifted / temperature)
    return weights / weights.sum()
