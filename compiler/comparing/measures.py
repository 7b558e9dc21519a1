"""How far two tensors, or two next-token distributions, are apart; all of it in float64.

Tensors are read in blocks of rows, so that a gigabyte needs no copy of itself.
"""

from collections.abc import Iterator

import numpy as np

from compiler.contracts.comparison import Measures, TensorStatus

# Elements of a block: the half dozen float64 arrays that it takes fit 16 MB.
_BLOCK = 1 << 18
_NOTHING = Measures(float("nan"), float("nan"), float("nan"), float("nan"), float("nan"))


def compare_tensors(
    reference: np.ndarray, candidate: np.ndarray
) -> tuple[TensorStatus | None, Measures]:
    """What makes the comparison meaningless, or None and the measures.

    Infinities that both have in the same places (the logits of masked tokens) are no difference:
    the measures are of the other entries.

    Returns:
        `shape`, `dtype`, `nan` (in either), or `infinite` (not the same in both), each with
        measures of NaN; None with numbers. Where the reference is all zeros, `max_rel` is 0 or 1
        and `cosine` 1 or 0.
    """
    if reference.shape != candidate.shape:
        return "shape", _NOTHING
    if reference.dtype != candidate.dtype:
        return "dtype", _NOTHING
    largest = scale = total = 0.0
    power = other_power = inner = noise = 0.0
    count, is_infinite = 0, False
    for wanted, given in _blocks(reference, candidate):
        if np.isnan(wanted).any() or np.isnan(given).any():
            return "nan", _NOTHING
        is_finite = np.isfinite(wanted) & np.isfinite(given)
        if not is_finite.all():
            is_infinite |= bool((wanted != given)[~is_finite].any())
            wanted, given = wanted[is_finite], given[is_finite]
        difference = np.abs(wanted - given)
        largest = max(largest, float(difference.max(initial=0.0)))
        scale = max(scale, float(wanted.max(initial=0.0)), -float(wanted.min(initial=0.0)))
        total += float(difference.sum())
        # numpy's sums, not BLAS: its threads wait for each other longer than so few numbers take.
        noise += float(np.square(difference).sum())
        power += float(np.square(wanted).sum())
        other_power += float(np.square(given).sum())
        inner += float((wanted * given).sum())
        count += wanted.size
    if is_infinite:
        return "infinite", _NOTHING
    return None, Measures(
        max_abs=largest,
        mean_abs=total / count if count else 0.0,
        max_rel=largest / scale if scale else float(largest > 0),
        cosine=_cosine(inner, power, other_power),
        snr_db=_decibels(power, noise),
    )


def next_token_kl(reference_logits: np.ndarray, candidate_logits: np.ndarray) -> float:
    """Kullback-Leibler divergence of softmax(candidate) from softmax(reference), in nats.

    Args:
        reference_logits: [vocabulary].
        candidate_logits: [vocabulary].

    Returns:
        Infinite where the candidate rules out a token that the reference does not.
    """
    return divergence(log_softmax(reference_logits), log_softmax(candidate_logits))


def divergence(wanted: np.ndarray, given: np.ndarray) -> float:
    """`next_token_kl` of logarithms of probabilities, as `log_softmax` gives them."""
    is_possible = ~np.isneginf(wanted)  # 0 log 0 is 0
    wanted, given = wanted[is_possible], given[is_possible]
    # Rounding can leave less than nothing; `np.maximum` keeps NaN.
    return float(np.maximum((np.exp(wanted) * (wanted - given)).sum(), 0.0))


def perplexity_from(surprise: float) -> float:
    """The exponential of a mean negative log-likelihood in nats; infinite where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(surprise))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, float64 [vocabulary]; NaN where there are none."""
    with np.errstate(invalid="ignore"):  # an infinite logit less the largest, infinite itself
        shifted = logits.astype(np.float64) - np.max(logits)
        return shifted - np.log(np.exp(shifted).sum())


def top5_overlap(reference_logits: np.ndarray, candidate_logits: np.ndarray) -> float:
    """Share of the reference's five largest logits among the candidate's five; ties by id."""
    wanted, given = _largest_five(reference_logits), _largest_five(candidate_logits)
    return len(wanted & given) / len(wanted)


def top2_margin(logits: np.ndarray) -> float:
    """The largest logit less the second largest; infinite in a vocabulary of one."""
    if logits.size < 2:
        return float("inf")
    second, first = np.partition(logits, -2)[-2:].tolist()
    return first - second


def is_near_tie(margin: float, max_abs: float) -> bool:
    """Whether logits that are off by up to `max_abs` can exchange the first two tokens."""
    return margin < 2 * max_abs


def _blocks(
    reference: np.ndarray, candidate: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both in float64, piece by piece."""
    wanted, given = reference.ravel(), candidate.ravel()
    for start in range(0, wanted.size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield wanted[rows].astype(np.float64), given[rows].astype(np.float64)


def _cosine(inner: float, power: float, other_power: float) -> float:
    if not power or not other_power:
        return float(power == other_power)
    return float(np.clip(inner / (np.sqrt(power) * np.sqrt(other_power)), -1.0, 1.0))


def _decibels(power: float, noise: float) -> float:
    if not noise:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power else float("-inf")


def _largest_five(logits: np.ndarray) -> frozenset[int]:
    """Their ids; of equal ones the lowest."""
    count = min(5, logits.size)
    least = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= least)
    order = np.argsort(-logits[candidates].astype(np.float64), kind="stable")
    return frozenset(candidates[order[:count]].tolist())
