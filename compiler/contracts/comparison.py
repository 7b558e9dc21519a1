"""The result of holding targets against each other; what `compare --json` prints.

Numbers that mean nothing (the cosine of tensors of two shapes) are NaN here and null in JSON.
"""

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["end-to-end", "layer", "tap"]
LEVELS: tuple[Level, ...] = ("end-to-end", "layer", "tap")
TensorStatus = Literal["pass", "fail", "nan", "infinite", "shape", "dtype"]


@dataclass(frozen=True)
class Measures:
    """How far a tensor is from the reference's.

    Attributes:
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        max_rel: Largest absolute difference over the reference's largest magnitude.
        cosine: Cosine similarity.
        snr_db: Power of the reference over that of the difference, in decibels; infinite if equal.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    cosine: float
    snr_db: float


@dataclass(frozen=True)
class StepComparison:
    """The logits of one step, both sides having read the same tokens.

    Attributes:
        name: `prompt0/step3/logits`; step 0 is the prompt's end.
        status: `pass`, `fail` (outside the tolerance), or what made the comparison meaningless.
        measures: Of the logits.
        kl: Kullback-Leibler divergence of the next-token distributions, in nats: how much the
            candidate's loses of the reference's.
        is_top1_equal: Whether the largest logit is the same token.
        top5_overlap: Share of the reference's five largest among the candidate's.
        margin: The reference's largest logit less its second.
        is_near_tie: Whether the margin is below twice the error of the step's logits, so that
            either token may come first; of the error no more counts than the limits allow.
    """

    name: str
    status: TensorStatus
    measures: Measures
    kl: float
    is_top1_equal: bool
    top5_overlap: float
    margin: float
    is_near_tie: bool


@dataclass(frozen=True)
class TapComparison:
    """One tap over all calls.

    Attributes:
        layer: Decoder layer; None for `embed`, `norm` and `logits`.
        point: `q`, as in `compiler.contracts.taps`.
        status: Of the local error where there is one, else of the accumulated.
        call: The call with the largest error: `prompt0/prefill0`, `prompt0/step3`.
        accumulated: What the two models differ by here, each having run from the tokens.
        local: What they differ by where the candidate computed this tap from the reference's
            values; None where that was not measured.
        is_recomputed: Whether the target does not hold this value and it was computed, by the
            program's own operators, from values that the target does hold.
    """

    layer: int | None
    point: str
    status: TensorStatus
    call: str
    accumulated: Measures
    local: Measures | None
    is_recomputed: bool = False


@dataclass(frozen=True)
class Divergence:
    """The first generated token in which two greedy decodings differ."""

    prompt: int
    step: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class TokenStrip:
    """One prompt's greedy decoding on both sides.

    Attributes:
        name: `prompt0`.
        prompt_tokens: Length of the prompt.
        reference: Tokens that the reference chose.
        candidate: Tokens that the candidate chose on its own; after a near-tie that went the other
            way, the reference's token was put in its place, and it went on from there.
        near_ties: Steps that are near-ties.
    """

    name: str
    prompt_tokens: int
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    near_ties: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, where, and what to make of it.

    Attributes:
        kind: `nan`, `infinite`, `shape`, `dtype`, `limit` (outside a tolerance), `fault` (the first
            tap that is wrong by itself), `observation` (watching changed the result), `missing`.
        where: A step, a tap, or a target.
        said: One sentence, with the figures.
        hint: What would pass, or what to do; empty for nothing.
        layer: Decoder layer, where it has one.
        point: Tap, where it has one.
    """

    kind: str
    where: str
    said: str
    hint: str = ""
    layer: int | None = None
    point: str = ""


@dataclass(frozen=True)
class Comparison:
    """One target against the reference.

    Attributes:
        reference: `torch`, `torch@bf16`, `onnxruntime@fold-mask`, or a file of saved outputs.
        candidate: Likewise.
        level: What was compared besides logits.
        steps: The logits of every step.
        taps: Every tap of the level.
        strips: Greedy decoding of every prompt.
        top1_agreement: Share of steps with the same first token, near-ties left out.
        top5_agreement: Mean `top5_overlap`.
        greedy_agreement: Share of equal greedy tokens, as in `TokenStrip`.
        near_ties: Number of steps that are near-ties.
        first_divergence: Where greedy decoding first differs at a step that is no near-tie.
        perplexity: Of a text, the reference's and the candidate's; None without a text.
        findings: What is wrong; nothing where it passed.
        limits: Name -> value that was asked for.
    """

    reference: str
    candidate: str
    level: Level
    steps: tuple[StepComparison, ...] = ()
    taps: tuple[TapComparison, ...] = ()
    strips: tuple[TokenStrip, ...] = ()
    top1_agreement: float = float("nan")
    top5_agreement: float = float("nan")
    greedy_agreement: float = float("nan")
    near_ties: int = 0
    first_divergence: Divergence | None = None
    perplexity: tuple[float, float] | None = None
    findings: tuple[Finding, ...] = ()
    limits: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def passed(self) -> bool:
        """Something was compared, and nothing is wrong with it."""
        return bool(self.steps or self.taps) and not self.findings


@dataclass(frozen=True)
class LadderStep:
    """One rung: what it changed of the logits, all rungs before it being there.

    Attributes:
        name: `trace`, `passes: canonical`, `quantize`, `target: tvm_llvm`, ...
        max_abs: Largest absolute change of a logit by this step.
        rms: Root mean square of the change.
        share: Signed share of the whole difference: the step's change projected on the whole one;
            all shares add up to 1. Negative where it undoes what another did.
        total_max_abs: Largest absolute difference from the first rung, so far.
        kl: Mean divergence of next-token distributions from the first rung's, so far.
    """

    name: str
    max_abs: float
    rms: float
    share: float
    total_max_abs: float
    kl: float


@dataclass(frozen=True)
class Ladder:
    """The whole difference, step by step.

    Attributes:
        steps: In order; the first is held against the reference.
        largest: Name of the step with the largest rms.
        layer: Decoder layer in which that step is furthest off by itself; None outside of them.
        point: The tap there.
        said: One sentence on it.
    """

    reference: str
    steps: tuple[LadderStep, ...]
    largest: str
    layer: int | None
    point: str
    said: str


@dataclass(frozen=True)
class SemanticCheck:
    """One property that holds of every causal language model, on one bundle.

    Attributes:
        name: `causality`, `prefill-decode`, `window-split`, `padding`, `reset`, `batch-rows`.
        status: `pass`, `fail`, or `not-applicable`.
        said: What failed, with figures, or why it does not apply.
        token: Position at which it first fails.
        layer: The layer at fault: where keys and values of the next one differ, the attention
            before them; where one of the two does, its own. None where only logits do.
        max_rel: Largest difference seen, over the largest magnitude.
        limit: What it may be.
    """

    name: str
    status: Literal["pass", "fail", "not-applicable"]
    said: str
    token: int | None = None
    layer: int | None = None
    max_rel: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True)
class Report:
    """All that one `compare` found.

    Attributes:
        comparisons: Every candidate against the reference.
        ladder: With `--ladder`.
        semantic: With `--semantic`: target -> its checks.
        environment: What it ran on: versions, CPU, threads, the model, inputs by digest.
    """

    comparisons: tuple[Comparison, ...] = ()
    ladder: Ladder | None = None
    semantic: dict[str, tuple[SemanticCheck, ...]] = field(
        default_factory=dict[str, tuple[SemanticCheck, ...]]
    )
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def passed(self) -> bool | None:
        """Nothing is wrong with what was held to anything; None where nothing was."""
        checks = [check for checks in self.semantic.values() for check in checks]
        if not self.comparisons and all(check.status == "not-applicable" for check in checks):
            return None
        return all(one.passed for one in self.comparisons) and all(
            check.status != "fail" for check in checks
        )
