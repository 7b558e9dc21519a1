"""One step: the candidate's logits against the reference's, and the tokens that both choose.

A step at which the candidate chose another token is excused if it is a near-tie. Logits that are
off by e can exchange two tokens that are less than 2e apart, so every exchange would be a near-tie
if e were what was measured. It is therefore the smaller of what was measured and what the limits
allow: an error outside the limits excuses nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compiler.comparing.limits import is_within
from compiler.comparing.measures import (
    compare_tensors,
    is_near_tie,
    next_token_kl,
    top2_margin,
    top5_overlap,
)
from compiler.contracts.comparison import Measures, StepComparison, TensorStatus

_NAN = float("nan")


@dataclass(frozen=True)
class Step:
    """One step of one prompt.

    Attributes:
        prompt: From 0.
        index: From 0, which is after the prompt.
        shown: The comparison.
        reference: The token that the reference chose.
        candidate: The token that the candidate would have chosen.
        flaw: Why it could not be measured; empty where it was.
    """

    prompt: int
    index: int
    shown: StepComparison
    reference: int
    candidate: int
    flaw: str = ""


def compare_step(
    place: tuple[int, int],
    token: int,
    wanted: np.ndarray,
    given: np.ndarray,
    *,
    limits: Mapping[str, float],
) -> Step:
    """Compare the logits [vocabulary] of one step.

    Args:
        place: Prompt and step.
        token: What the reference chose.
        wanted: The reference's logits.
        given: The candidate's.
        limits: By their names in the YAML.
    """
    prompt, index = place
    name, chosen = f"prompt{prompt}/step{index}/logits", int(np.argmax(given))
    status, measures = compare_tensors(wanted, given)
    if status is not None:
        shown = StepComparison(name, status, measures, _NAN, False, 0.0, _NAN, False)
        return Step(prompt, index, shown, token, chosen, _flaw(status, wanted, given))
    kl, margin = next_token_kl(wanted, given), top2_margin(wanted)
    figures = step_figures(measures, kl)
    is_passing = all(is_within(key, figure, limits[key]) for key, figure in figures.items())
    shown = StepComparison(
        name=name,
        status="pass" if is_passing else "fail",
        measures=measures,
        kl=kl,
        is_top1_equal=chosen == token,
        top5_overlap=top5_overlap(wanted, given),
        margin=margin,
        is_near_tie=is_near_tie(margin, min(measures.max_abs, allowed_error(wanted, limits))),
    )
    return Step(prompt, index, shown, token, chosen)


def step_figures(measures: Measures, kl: float) -> dict[str, float]:
    """What each limit of a step is held against."""
    return {
        "max_abs": measures.max_abs,
        "max_rel": measures.max_rel,
        "min_cosine": measures.cosine,
        "max_kl": kl,
    }


def allowed_error(wanted: np.ndarray, limits: Mapping[str, float]) -> float:
    """The largest difference of a logit that the limits let pass."""
    scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    return min(limits["max_abs"], limits["max_rel"] * scale)


def _flaw(status: TensorStatus, wanted: np.ndarray, given: np.ndarray) -> str:
    if status == "shape":
        return f"the logits have shape {list(given.shape)}, expected {list(wanted.shape)}"
    if status == "dtype":
        return f"the logits are {given.dtype}, expected {wanted.dtype}"
    is_it, what = (np.isnan, "NaN") if status == "nan" else (np.isinf, "infinite")
    theirs, ours = int(is_it(given).sum()), int(is_it(wanted).sum())
    return f"{theirs} of {given.size} logits are {what}, of the reference {ours}"
