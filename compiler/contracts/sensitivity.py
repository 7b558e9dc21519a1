"""What rounding costs, module by module; what `sensitivity --json` prints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModuleLoss:
    """One weight, rounded alone.

    Attributes:
        modules: Whose weight it is; several where a pass joined theirs.
        kl: Divergence from the float model, in nats for each token, mean over the tokens.
    """

    modules: tuple[str, ...]
    kl: float


@dataclass(frozen=True)
class Exclusion:
    """The modules that stay floats for a budget.

    Attributes:
        modules: The worst by their own loss, in the order of it.
        kl: Measured divergence of the model in which all others are rounded.
        target_loss: The budget.
        remaining: Weights that are rounded still.
    """

    modules: tuple[str, ...]
    kl: float
    target_loss: float
    remaining: int


@dataclass(frozen=True)
class Sensitivity:
    """A model's.

    Attributes:
        source: Where the tokens come from.
        samples: Windows of tokens.
        tokens: Of a window.
        ranking: Every weight that is quantized, the costliest first.
        exclusion: What `frontend.quantize.target_loss` leaves out; None where it is not given.
    """

    source: str
    samples: int
    tokens: int
    ranking: tuple[ModuleLoss, ...]
    exclusion: Exclusion | None = None
