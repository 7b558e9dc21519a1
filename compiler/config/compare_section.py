"""`compare`: the limits of a comparison, and each dtype's own where the YAML sets none."""

from collections.abc import Mapping

from compiler.config.section_values import Bound, Dtype, Section, Share


class CompareSection(Section):
    """`compare`: limits that the YAML sets in place of its dtype's defaults."""

    max_abs: Bound | None = None
    max_rel: Bound | None = None
    min_cosine: Share | None = None
    max_kl: Bound | None = None
    min_top1: Share | None = None
    min_top5: Share | None = None
    min_greedy: Share | None = None
    max_local: Bound | None = None
    max_perplexity_increase: Bound | None = None


class CompareLimits(Section):
    """What two models may differ by.

    Attributes:
        max_abs: Largest absolute difference of a logit.
        max_rel: That, over the largest magnitude of the reference's logits in the step.
        min_cosine: Least cosine similarity of a step's logits.
        max_kl: Largest divergence of a step's next-token distribution, in nats.
        min_top1: Least share of steps with the same largest logit, near-ties left out.
        min_top5: Least mean share of the same five largest logits.
        min_greedy: Least share of equal greedy tokens, near-ties included.
        max_local: Largest difference of a tap that was computed from the reference's values, over
            the reference's largest magnitude there.
        max_perplexity_increase: Largest increase, as a share of the reference's.
    """

    max_abs: float
    max_rel: float
    min_cosine: float
    max_kl: float
    min_top1: float
    min_top5: float
    min_greedy: float
    max_local: float
    max_perplexity_increase: float


# Derived, and held against what was measured, in docs/comparing.md.
COMPARE_DEFAULTS: Mapping[Dtype, CompareLimits] = {
    "fp32": CompareLimits(
        max_abs=2e-3,
        max_rel=1e-4,
        min_cosine=0.999999,
        max_kl=1e-7,
        min_top1=1.0,
        min_top5=0.99,
        min_greedy=0.99,
        max_local=2e-5,
        max_perplexity_increase=1e-5,
    ),
    "bf16": CompareLimits(
        max_abs=1.6,
        max_rel=8e-2,
        min_cosine=0.99,
        max_kl=5e-2,
        min_top1=1.0,
        min_top5=0.9,
        min_greedy=0.9,
        max_local=3.2e-2,
        max_perplexity_increase=5e-3,
    ),
    "fp16": CompareLimits(
        max_abs=0.2,
        max_rel=1e-2,
        min_cosine=0.9998,
        max_kl=1e-3,
        min_top1=1.0,
        min_top5=0.95,
        min_greedy=0.95,
        max_local=4e-3,
        max_perplexity_increase=2e-3,
    ),
    "int8": CompareLimits(
        max_abs=6.0,
        max_rel=0.3,
        min_cosine=0.85,
        max_kl=0.5,
        min_top1=1.0,
        min_top5=0.75,
        min_greedy=0.8,
        max_local=0.15,
        max_perplexity_increase=5e-2,
    ),
}
