"""What `evaluate` finds of a bundle; what its `--json` prints, and a build writes beside its log.

Numbers that mean nothing are NaN here and null in JSON.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceFigures:
    """A bundle against the float model, on the same tokens.

    Attributes:
        name: Of the target that ran the model: `torch`.
        perplexity: Of the float model.
        perplexity_increase: The bundle's over it, less 1.
        mean_kl: Kullback-Leibler divergence of the bundle's next-token distribution from the
            model's, in nats, mean over the tokens.
        max_kl: Largest of one token.
        top1_agreement: Share of tokens after which both put the same one first, near-ties left out.
        near_ties: Tokens after which the model's first two are closer than what the bundle is off
            by, as far as its limits allow that.
    """

    name: str
    perplexity: float
    perplexity_increase: float
    mean_kl: float
    max_kl: float
    top1_agreement: float
    near_ties: int


@dataclass(frozen=True)
class Evaluation:
    """A bundle on a text.

    Attributes:
        bundle: Its digest.
        inputs: Digest of the tokens.
        tokens: How many were read, the last one included, of which nothing is asked.
        context: Tokens of a window; each begins with an empty cache.
        perplexity: Of the bundle.
        reference: Against the float model; None where that could not be run.
        note: Why it could not, and how to get it; empty where it ran.
    """

    bundle: str
    inputs: str
    tokens: int
    context: int
    perplexity: float
    reference: ReferenceFigures | None = None
    note: str = ""
