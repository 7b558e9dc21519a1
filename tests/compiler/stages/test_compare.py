"""End-to-end comparisons between stand-ins whose logits are written down."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from compiler.config import CompareLimits
from compiler.contracts.comparison import Comparison, Divergence, Finding, TokenStrip
from compiler.contracts.runner import Runner
from compiler.stages.compare import (
    Trajectory,
    compare_end_to_end,
    decode_forced,
    decode_greedily,
)

LIMITS = CompareLimits(
    max_abs=0.5,
    max_rel=1.0,
    min_cosine=0.5,
    max_kl=0.5,
    min_top1=1.0,
    min_top5=0.0,
    min_greedy=0.0,
    max_local=1.0,
    max_perplexity_increase=0.1,
)


class Scripted(Runner):
    """Says the token after the last one it read: a logit of 10, the one after that 9, the rest 0.

    Attributes:
        changes: Length -> what is added to which logits there.
    """

    vocabulary = 12

    def __init__(
        self, changes: Mapping[int, Mapping[int, float]] | None = None, *, context: int = 32
    ) -> None:
        self.context = context
        self.changes = changes or {}
        self.calls: list[list[int]] = []

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        self.calls.append(list(tokens))
        self.length += len(tokens)
        logits = np.zeros(self.vocabulary, np.float32)
        logits[(tokens[-1] + 1) % self.vocabulary] = 10
        logits[(tokens[-1] + 2) % self.vocabulary] = 9
        for token, more in self.changes.get(self.length, {}).items():
            logits[token] += more
        return logits


def compared(
    candidate: Runner,
    *,
    prompts: Sequence[Sequence[int]] = ([1],),
    steps: int = 4,
    reference: Runner | None = None,
    perplexity: tuple[float, float] | None = None,
    limits: CompareLimits = LIMITS,
) -> Comparison:
    runner = reference or Scripted()
    references = [decode_greedily(runner, prompt, steps=steps) for prompt in prompts]
    return compare_end_to_end(
        ("torch", "tvm_llvm"),
        references,
        [decode_forced(candidate, one) for one in references],
        limits=limits,
        perplexity=perplexity,
    )


def limited(**changed: float) -> CompareLimits:
    return LIMITS.model_copy(update=changed)


def kinds(found: Comparison) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in found.findings]


# -- trajectories


def test_greedy_decoding_feeds_what_it_chose():
    runner = Scripted()
    found = decode_greedily(runner, [3, 4], steps=3)
    assert (found.prompt, found.tokens) == ((3, 4), (5, 6, 7))
    assert found.logits.shape == (3, 12)
    assert found.logits.argmax(axis=1).tolist() == [5, 6, 7]
    assert runner.calls == [[3, 4], [5], [6]]


def test_every_decoding_starts_over():
    runner = Scripted(context=4)
    first = decode_greedily(runner, [1], steps=4)
    assert decode_greedily(runner, [1], steps=4).tokens == first.tokens == (2, 3, 4, 5)
    assert [int(row.argmax()) for row in decode_forced(runner, first)] == [2, 3, 4, 5]


def test_decoding_ends_with_the_context():
    assert decode_greedily(Scripted(context=4), [1, 2], steps=10).tokens == (3, 4, 5)
    assert decode_greedily(Scripted(context=2), [1, 2], steps=10).tokens == (3,)
    reference = decode_greedily(Scripted(), [1, 2], steps=5)
    assert len(list(decode_forced(Scripted(context=4), reference))) == 3


def test_a_tie_goes_to_the_lowest_id():
    assert decode_greedily(Scripted({1: {3: 1}, 2: {0: 10}}), [1], steps=2).tokens == (2, 0)


def test_forced_decoding_feeds_the_references_tokens():
    runner = Scripted()
    reference = Trajectory((3, 4), (0, 7, 6), np.zeros((3, 12), np.float32))
    rows = list(decode_forced(runner, reference))
    assert runner.calls == [[3, 4], [0], [7]]
    assert [int(row.argmax()) for row in rows] == [5, 1, 8]


# -- agreement


def test_equal_models():
    candidate = Scripted()
    found = compared(candidate, prompts=[[1], [2, 3]], limits=limited(min_top5=1.0, min_greedy=1.0))
    assert [step.name for step in found.steps] == [
        f"prompt{prompt}/step{step}/logits" for prompt in range(2) for step in range(4)
    ]
    assert {step.status for step in found.steps} == {"pass"}
    assert all(step.is_top1_equal and not step.is_near_tie for step in found.steps)
    assert {(step.kl, step.top5_overlap, step.margin) for step in found.steps} == {(0.0, 1.0, 1.0)}
    assert (found.top1_agreement, found.top5_agreement, found.greedy_agreement) == (1.0, 1.0, 1.0)
    assert found.strips == (
        TokenStrip("prompt0", 1, (2, 3, 4, 5), (2, 3, 4, 5), ()),
        TokenStrip("prompt1", 2, (4, 5, 6, 7), (4, 5, 6, 7), ()),
    )
    assert (found.near_ties, found.first_divergence, found.findings) == (0, None, ())
    assert (found.reference, found.candidate, found.level) == ("torch", "tvm_llvm", "end-to-end")
    assert found.limits == LIMITS.model_dump() | {"min_top5": 1.0, "min_greedy": 1.0}
    assert found.passed
    assert len(candidate.calls) == 8, "one pass over the candidate"


def test_an_exchange_within_the_allowed_error_is_excused_and_decoding_goes_on():
    # At a length of 2 the candidate has 9.45 for the token 3 and 9.55 for 4; 0.55 are allowed.
    candidate = Scripted({2: {3: -0.55, 4: 0.55}})
    found = compared(candidate, limits=limited(max_abs=0.6))
    assert found.strips == (TokenStrip("prompt0", 1, (2, 3, 4, 5), (2, 4, 4, 5), (1,)),)
    assert candidate.calls == [[1], [2], [3], [4]]
    assert [step.is_near_tie for step in found.steps] == [False, True, False, False]
    assert [step.is_top1_equal for step in found.steps] == [True, False, True, True]
    assert (found.near_ties, found.first_divergence) == (1, None)
    assert (found.top1_agreement, found.greedy_agreement) == (1.0, 0.75)
    assert found.passed


def test_an_exchange_by_an_error_outside_the_limits_is_the_first_divergence():
    candidate = Scripted({2: {3: -0.55, 4: 0.55}, 4: {5: -2, 6: 2}})
    found = compared(candidate, limits=limited(max_abs=0.4))
    assert found.first_divergence == Divergence(prompt=0, step=1, reference=3, candidate=4)
    assert found.near_ties == 0
    assert found.strips[0].candidate == (2, 4, 4, 6)
    assert (found.top1_agreement, found.greedy_agreement) == (0.5, 0.5)
    assert kinds(found) == [
        ("limit", "prompt0/step3/logits"),
        ("limit", "prompt0/step3/logits"),
        ("limit", "prompt0/step1/logits"),
    ]
    assert [finding.hint for finding in found.findings] == [
        "compare: {max_abs: 2.0} would pass",
        "compare: {max_kl: 1.7} would pass",
        "compare: {min_top1: 0.50} would pass",
    ]
    assert found.findings[2].said == (
        "the share of equal first tokens, near-ties left out, is 0.5, min_top1 is 1; first here: "
        "the candidate chose 4, and the reference 3, by 1, the logits being off by 0.55"
    )
    assert not found.passed


def test_the_relative_limit_counts_for_what_is_allowed():
    # 0.55 of 10: a margin of 1 is excused from 0.05 on.
    candidate = {2: {3: -0.55, 4: 0.55}}
    assert compared(Scripted(candidate), limits=limited(max_abs=9, max_rel=0.0501)).near_ties == 1
    found = compared(Scripted(candidate), limits=limited(max_abs=9, max_rel=0.0499))
    assert (found.near_ties, found.top1_agreement) == (0, 0.75)
    assert found.first_divergence == Divergence(0, 1, 3, 4)


def test_a_near_tie_that_stays_is_counted_too():
    found = compared(Scripted({2: {3: 0.501}}), limits=limited(max_abs=0.6))
    assert (found.near_ties, found.top1_agreement, found.greedy_agreement) == (1, 1.0, 1.0)
    assert found.strips[0].near_ties == (1,)


def test_the_margin_is_the_references():
    found = compared(Scripted({2: {3: 0.25}}), reference=Scripted({2: {4: 0.75}}))
    assert [step.margin for step in found.steps] == [1.0, 0.25, 1.0, 1.0]


def test_no_step_is_left_without_near_ties():
    found = compared(Scripted({1: {2: -0.55, 3: 0.55}}), steps=1, limits=limited(max_abs=0.6))
    assert math.isnan(found.top1_agreement)
    assert (found.near_ties, found.greedy_agreement, found.passed) == (1, 0.0, True)


def test_the_share_of_the_five_first():
    # Of the second step's five first, 3, 4, 0, 1, 2, the candidate has three.
    found = compared(Scripted({2: {8: 0.5, 9: 0.5}}), limits=limited(min_top5=0.91))
    assert [step.top5_overlap for step in found.steps] == [1.0, 0.6, 1.0, 1.0]
    assert found.top5_agreement == pytest.approx(0.9)
    assert kinds(found) == [("limit", "prompt0/step1/logits")]
    assert found.findings[0].hint == "compare: {min_top5: 0.90} would pass"
    assert compared(Scripted({2: {8: 0.5, 9: 0.5}}), limits=limited(min_top5=0.9)).passed


def test_greedy_agreement_has_a_limit_that_near_ties_count_for():
    exchange = {2: {3: -0.55, 4: 0.55}}
    found = compared(Scripted(exchange), limits=limited(max_abs=0.6, min_greedy=0.8))
    assert found.findings == (
        Finding(
            "limit",
            "prompt0/step1/logits",
            "the share of equal greedy tokens is 0.75, min_greedy is 0.8; "
            "1 of 4 tokens differ, 1 at near-ties; first here",
            "compare: {min_greedy: 0.75} would pass",
        ),
    )
    assert compared(Scripted(exchange), limits=limited(max_abs=0.6, min_greedy=0.75)).passed


# -- limits of a step


@pytest.mark.parametrize(
    ("key", "loose", "strict", "worst"),
    [
        ("max_abs", 0.301, 0.2, 0.3),
        ("max_rel", 0.031, 0.029, 0.03),
        ("min_cosine", 0.999, 0.99999, 0.99956),
        ("max_kl", 0.01, 0.001, 0.00843),
    ],
)
def test_each_limit_gives_one_finding_at_the_worst_step(
    key: str, loose: float, strict: float, worst: float
):
    wide = {"max_abs": 9.0, "max_rel": 9.0, "min_cosine": 0.0, "max_kl": 9.0}
    changes = {2: {3: 0.25}, 3: {4: 0.3, 7: 0.25, 8: 0.25}, 4: {5: 0.25}}
    assert compared(Scripted(changes), limits=limited(**{**wide, key: loose})).passed
    found = compared(Scripted(changes), limits=limited(**{**wide, key: strict}))
    assert kinds(found) == [("limit", "prompt0/step2/logits")]
    assert found.steps[2].status == "fail"
    assert found.steps[0].status == "pass"
    assert f"{key} is {strict:g}; " in found.findings[0].said
    figures = found.steps[2].measures
    measured = {
        "max_abs": figures.max_abs,
        "max_rel": figures.max_rel,
        "min_cosine": figures.cosine,
        "max_kl": found.steps[2].kl,
    }
    assert measured[key] == pytest.approx(worst, rel=1e-3 if key == "max_kl" else 1e-5)


def test_what_a_finding_proposes_would_pass():
    changes = {2: {3: 0.3017, 7: -0.21}}
    found = compared(
        Scripted(changes), limits=limited(max_abs=0.001, max_rel=0.001, min_cosine=1.0, max_kl=0.0)
    )
    limits = {
        key: float(value)
        for key, _, value in (
            finding.hint.removeprefix("compare: {").removesuffix("} would pass").partition(": ")
            for finding in found.findings
        )
    }
    assert limits.keys() == {"max_abs", "max_rel", "min_cosine", "max_kl"}
    assert (limits["max_abs"], limits["max_rel"]) == (0.31, 0.031)
    assert compared(Scripted(changes), limits=limited(**limits)).passed


# -- what cannot be measured


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (
            math.nan,
            "nan",
            "1 of 12 logits are NaN, of the reference 0; in 2 of 4 steps, first here",
        ),
        (math.inf, "infinite", "1 of 12 logits are infinite, of the reference 0; in 2 of 4 steps,"),
    ],
)
def test_what_is_not_finite_is_a_finding_of_its_own(value: float, kind: str, said: str):
    found = compared(
        Scripted({2: {7: value}, 3: {7: value}}), limits=limited(min_greedy=0.5, min_top1=0.5)
    )
    assert kinds(found) == [(kind, "prompt0/step1/logits")]
    assert found.findings[0].said.startswith(said)
    step = found.steps[1]
    assert (step.status, step.is_top1_equal, step.top5_overlap) == (kind, False, 0.0)
    assert (step.is_near_tie, found.near_ties) == (False, 0)
    assert math.isnan(step.kl)
    assert math.isnan(step.margin)
    assert math.isnan(step.measures.max_abs)
    assert (found.top1_agreement, found.top5_agreement, found.greedy_agreement) == (0.5, 0.5, 0.5)
    assert found.first_divergence == Divergence(0, 1, 3, 7)
    assert found.steps[3].status == "pass"


def test_a_token_chosen_from_nan_agrees_with_nothing():
    # NaN at the very token that the reference chose.
    found = compared(Scripted({2: {3: math.nan}}))
    assert found.strips[0].candidate == (2, 3, 4, 5)
    assert (found.top1_agreement, found.greedy_agreement) == (0.75, 0.75)
    assert found.first_divergence is None
    assert kinds(found) == [("nan", "prompt0/step1/logits"), ("limit", "prompt0/step1/logits")]


def test_masked_logits_are_no_finding():
    masked = {length: {7: -math.inf} for length in range(1, 5)}
    found = compared(Scripted(masked), reference=Scripted(masked))
    assert {step.status for step in found.steps} == {"pass"}
    assert found.passed


@pytest.mark.parametrize(
    ("convert", "kind", "said"),
    [
        (lambda row: row[None], "shape", "the logits have shape [1, 12], expected [12]; in 4 of 4"),
        (lambda row: row.astype(np.float64), "dtype", "the logits are float64, expected float32;"),
    ],
)
def test_another_shape_or_dtype(convert, kind: str, said: str):
    reference = decode_greedily(Scripted(), [1], steps=4)
    rows = [convert(row) for row in decode_forced(Scripted(), reference)]
    found = compare_end_to_end(("a", "b"), [reference], [rows], limits=LIMITS)
    assert kinds(found)[0] == (kind, "prompt0/step0/logits")
    assert found.findings[0].said.startswith(said)
    assert found.top1_agreement == 0.0


def test_a_candidate_with_a_smaller_context_is_missing_steps():
    found = compared(Scripted(context=3), prompts=[[1], [2, 3]])
    assert kinds(found) == [
        ("missing", "prompt0/step3/logits"),
        ("missing", "prompt1/step2/logits"),
    ]
    assert found.findings[0].said == "the candidate ends after 3 of 4 steps"
    assert (found.top1_agreement, found.greedy_agreement) == (1.0, 5 / 8)
    assert len(found.strips[1].candidate) == 2
    assert not found.passed


def test_nothing_compared_is_no_pass():
    found = compare_end_to_end(("a", "b"), [], [], limits=LIMITS)
    assert (found.steps, found.findings, found.passed) == ((), (), False)
    shares = (found.top1_agreement, found.top5_agreement, found.greedy_agreement)
    assert np.isnan(shares).all()


# -- perplexity


def test_perplexity_may_fall_and_rise_a_little():
    assert compared(Scripted(), perplexity=(10.0, 5.0)).passed
    found = compared(Scripted(), perplexity=(10.0, 10.9))
    assert (found.perplexity, found.passed) == ((10.0, 10.9), True)


def test_perplexity_that_rises_too_far():
    found = compared(Scripted(), perplexity=(10.0, 11.5))
    assert found.findings == (
        Finding(
            "limit",
            "perplexity",
            "the relative increase of the perplexity is 0.15, max_perplexity_increase is 0.1; "
            "from 10 to 11.5",
            "compare: {max_perplexity_increase: 0.15} would pass",
        ),
    )


@pytest.mark.parametrize(
    ("pair", "kind"),
    [((10.0, math.nan), "nan"), ((10.0, math.inf), "infinite"), ((math.inf, math.inf), "infinite")],
)
def test_perplexity_that_is_not_finite(pair: tuple[float, float], kind: str):
    assert kinds(compared(Scripted(), perplexity=pair)) == [(kind, "perplexity")]
