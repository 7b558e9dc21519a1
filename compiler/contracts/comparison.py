"""The result of holding two targets against each other; what `compare --json` prints."""

from dataclasses import dataclass
from typing import Literal

TensorStatus = Literal["pass", "fail", "nan", "infinite", "shape", "dtype"]


@dataclass(frozen=True)
class TensorComparison:
    """One tensor of both sides.

    Attributes:
        name: `prompt0/step3/logits`.
        status: `pass`, `fail` (outside the tolerance), or what made the comparison meaningless.
        max_abs: Largest absolute difference.
        max_rel: Largest absolute difference over the reference's largest magnitude.
        cosine: Cosine similarity.
    """

    name: str
    status: TensorStatus
    max_abs: float
    max_rel: float
    cosine: float


@dataclass(frozen=True)
class Divergence:
    """The first generated token in which two greedy decodings differ."""

    prompt: int
    step: int
    reference: int
    candidate: int


@dataclass(frozen=True)
class Comparison:
    """Two targets over all inputs at one level.

    Attributes:
        reference: Target name.
        candidate: Target name.
        level: `end-to-end`.
        tensors: Every tensor that was compared.
        top1_agreement: Share of steps whose largest logit is the same token, teacher-forced.
        greedy_agreement: Share of free-running greedy tokens that are equal.
        first_divergence: Where greedy decoding first differs.
        min_top1: The share of `top1_agreement` that passes.
        min_greedy: The share of `greedy_agreement` that passes.
    """

    reference: str
    candidate: str
    level: str
    tensors: tuple[TensorComparison, ...]
    top1_agreement: float
    greedy_agreement: float
    first_divergence: Divergence | None
    min_top1: float = 1.0
    min_greedy: float = 1.0

    @property
    def passed(self) -> bool:
        """Something was compared, and all of it passed."""
        return (
            bool(self.tensors)
            and all(tensor.status == "pass" for tensor in self.tensors)
            and self.top1_agreement >= self.min_top1
            and self.greedy_agreement >= self.min_greedy
        )
