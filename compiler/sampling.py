"""The next token from logits: greedy, or drawn at a temperature from the nucleus, reproducibly.

Nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration"
(https://arxiv.org/abs/1904.09751).
"""

import numpy as np


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
        # Stable, so that tokens of equal probability enter the nucleus by their id.
        order = np.argsort(-probabilities, kind="stable")
        cumulative = np.cumsum(probabilities[order])
        kept = min(int(np.searchsorted(cumulative, self._top_p)) + 1, len(order))
        if self._top_p == 1:
            kept = int(np.count_nonzero(probabilities))
        drawn = self._random.random() * cumulative[kept - 1]
        return int(order[min(int(np.searchsorted(cumulative, drawn, side="right")), kept - 1)])


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    shifted = logits.astype(np.float64) - np.max(logits)
    # A tiny temperature sends every other logit to -inf, as it should.
    with np.errstate(over="ignore"):
        weights = np.exp(shifted / temperature)
    return weights / weights.sum()
