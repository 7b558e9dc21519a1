"""Two runners on identical tokens: trajectories, and the measures between them.

The reference decodes greedily; the candidate is then fed the reference's tokens, so that each
step's logits answer the same question, and decodes once more on its own for the greedy agreement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.contracts.comparison import Comparison, Divergence, TensorComparison, TensorStatus
from compiler.contracts.target_base import Runner


@dataclass(frozen=True)
class Limits:
    """What passes: the tolerances of `compare` in the YAML.

    Attributes:
        max_abs: Largest absolute difference of a logit.
        max_rel: Largest absolute difference over the largest magnitude of the reference.
        min_cosine: Smallest cosine similarity of a step's logits.
        min_top1: Smallest share of steps with the same largest logit.
        min_greedy: Smallest share of equal tokens in free-running greedy decoding.
    """

    max_abs: float
    max_rel: float
    min_cosine: float
    min_top1: float
    min_greedy: float


@dataclass(frozen=True)
class Trajectory:
    """One prompt's decoding: the tokens chosen, and the logits that each was chosen from.

    Attributes:
        tokens: Generated ids.
        logits: float32 [len(tokens), vocabulary].
    """

    tokens: tuple[int, ...]
    logits: np.ndarray


def decode_greedily(runner: Runner, prompt: Sequence[int], steps: int) -> Trajectory:
    """`steps` tokens, each the largest logit (on a tie the lowest id); fewer at context's end."""
    runner.rewind(0)
    rows = [runner.extend(prompt)]
    tokens = [int(np.argmax(rows[0]))]
    while len(tokens) < steps and runner.length < runner.context:
        rows.append(runner.extend(tokens[-1:]))
        tokens.append(int(np.argmax(rows[-1])))
    return Trajectory(tuple(tokens), np.stack(rows))


def decode_forced(runner: Runner, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """The logits before each of `tokens`, which are fed whatever the runner would have chosen."""
    runner.rewind(0)
    rows = [runner.extend(prompt)]
    rows += [runner.extend([token]) for token in tokens[:-1]]
    return np.stack(rows)


def measure(
    name: str, reference: np.ndarray, candidate: np.ndarray, limits: Limits
) -> TensorComparison:
    """Compare two tensors; what makes a comparison meaningless is a status of its own."""
    if reference.shape != candidate.shape:
        return _unmeasured(name, "shape")
    if reference.dtype != candidate.dtype:
        return _unmeasured(name, "dtype")
    if np.isnan(reference).any() or np.isnan(candidate).any():
        return _unmeasured(name, "nan")
    if np.isinf(reference).any() or np.isinf(candidate).any():
        return _unmeasured(name, "infinite")
    wide, other = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    max_abs = float(np.abs(wide - other).max(initial=0.0))
    scale = float(np.abs(wide).max(initial=0.0))
    max_rel = max_abs / scale if scale else float(max_abs > 0)
    norms = float(np.linalg.norm(wide) * np.linalg.norm(other))
    cosine = float(wide @ other) / norms if norms else float(not wide.any() and not other.any())
    is_within = (
        max_abs <= limits.max_abs and max_rel <= limits.max_rel and cosine >= limits.min_cosine
    )
    return TensorComparison(name, "pass" if is_within else "fail", max_abs, max_rel, cosine)


def _unmeasured(name: str, status: TensorStatus) -> TensorComparison:
    return TensorComparison(name, status, float("nan"), float("nan"), float("nan"))


def compare_trajectories(
    names: tuple[str, str],
    references: Sequence[Trajectory],
    forced: Sequence[np.ndarray],
    *,
    free: Sequence[Sequence[int]],
    limits: Limits,
) -> Comparison:
    """Everything that two targets said of the same prompts.

    Args:
        names: The reference's and the candidate's.
        references: Per prompt, the reference's greedy decoding.
        forced: Per prompt, the candidate's logits on the reference's tokens.
        free: Per prompt, the candidate's own greedy tokens.
        limits: What passes.
    """
    tensors = [
        measure(f"prompt{index}/step{step}/logits", wanted, given, limits)
        for index, (one, other) in enumerate(zip(references, forced, strict=True))
        for step, (wanted, given) in enumerate(zip(one.logits, other, strict=True))
    ]
    chosen = [token for one in references for token in one.tokens]
    forced_top = [int(np.argmax(row)) for other in forced for row in other]
    equal_free = sum(
        a == b
        for one, own in zip(references, free, strict=True)
        for a, b in zip(one.tokens, own, strict=False)
    )
    return Comparison(
        reference=names[0],
        candidate=names[1],
        level="end-to-end",
        tensors=tuple(tensors),
        top1_agreement=_share(sum(map(int.__eq__, chosen, forced_top)), len(chosen)),
        greedy_agreement=_share(equal_free, len(chosen)),
        first_divergence=_first_divergence(references, free),
        min_top1=limits.min_top1,
        min_greedy=limits.min_greedy,
    )


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _first_divergence(
    references: Sequence[Trajectory], free: Sequence[Sequence[int]]
) -> Divergence | None:
    for prompt, (one, own) in enumerate(zip(references, free, strict=True)):
        for step, (wanted, given) in enumerate(zip(one.tokens, own, strict=False)):
            if wanted != given:
                return Divergence(prompt, step, wanted, given)
    return None
