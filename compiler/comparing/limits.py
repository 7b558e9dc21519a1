"""A figure against its limit: whether it passes, and which limit would let it pass."""

from decimal import ROUND_CEILING, Decimal

from compiler.contracts.comparison import Finding


def is_within(key: str, figure: float, limit: float) -> bool:
    """Whether a limit of `compare` holds; `key` says in which direction. NaN never passes."""
    return figure >= limit if key.startswith("min_") else figure <= limit


def limit_findings(
    key: str, figure: float, limit: float, *, where: str, what: str, because: str = ""
) -> tuple[Finding, ...]:
    """The finding that one figure gives; none where it is within the limit.

    Args:
        key: Of the YAML's `compare`: `max_abs`, `min_cosine`.
        figure: What was measured.
        limit: What it may be.
        where: The step or tap that is the farthest outside.
        what: What was measured, as a noun: `the largest difference of a logit`.
        because: More to say.
    """
    if is_within(key, figure, limit):
        return ()
    said = f"{what} is {figure:.4g}, {key} is {limit:g}"
    passing = passing_limit(key, figure)
    return (
        Finding(
            "limit",
            where,
            f"{said}; {because}" if because else said,
            hint=f"compare: {{{key}: {passing}}} would pass" if passing else "",
        ),
    )


def passing_limit(key: str, figure: float) -> str:
    """The tightest limit of two digits that `figure` passes, as the YAML takes it.

    A share's distance from 1 has the two digits: 0.99987 gives 0.99987, 0.9784 gives 0.978. Empty
    where no limit would do.
    """
    if key.startswith("min_"):
        return f"{1 - _rounded_up(1 - Decimal(repr(figure))):f}" if 0 <= figure <= 1 else ""
    return f"{_rounded_up(Decimal(repr(figure))):f}" if figure < float("inf") else ""


def _rounded_up(value: Decimal) -> Decimal:
    if not value:
        return Decimal("0.0")
    return value.quantize(Decimal(1).scaleb(value.adjusted() - 1), ROUND_CEILING)
