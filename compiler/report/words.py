"""Numbers as a reader wants them: short, none rounded to perfection, NaN and infinity in words."""

import math
from collections.abc import Iterable

_PLAIN = (1e-3, 1e5)
# Decimals tried before a share short of 1 is allowed to look like 100%.
_SHARE_DECIMALS = (2, 3, 4, 5, 6)


def number(value: float) -> str:
    """`0.0123`, `1.23e-5`, `not a number`, `infinite`."""
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    if _PLAIN[0] <= abs(value) < _PLAIN[1]:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{_stripped(mantissa)}e{int(exponent)}"


def share(value: float) -> str:
    """`99.87%`; 100% is all of it and nothing less."""
    if not math.isfinite(value):
        return _not_finite(value)
    for decimals in _SHARE_DECIMALS:
        said = f"{100 * value:.{decimals}f}"
        if value >= 1 or float(said) != 100:
            return f"{_stripped(said)}%"
    return "almost 100%"


def signed_share(value: float) -> str:
    """`+61.3%`, with a minus sign of a plus sign's width."""
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{100 * value:+.1f}%".replace("-", "\N{MINUS SIGN}")


def cosine(value: float) -> str:
    """Enough decimals to count the nines."""
    if not math.isfinite(value):
        return _not_finite(value)
    said = _stripped(f"{value:.9f}")
    return f"1 \N{MINUS SIGN} {number(1 - value)}" if said == "1" and value < 1 else said


def perplexity(value: float) -> str:
    """Enough digits to tell two good models apart."""
    return f"{value:.6g}" if math.isfinite(value) else _not_finite(value)


def counted(count: int, thing: str) -> str:
    """`1 finding`, `3 findings`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def shortened(text: str, length: int) -> str:
    """At most `length` characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def largest(values: Iterable[float]) -> float:
    """The largest, where NaN is larger than everything; NaN of nothing."""
    return max(values, key=badness, default=math.nan)


def badness(value: float) -> tuple[bool, float]:
    """Sorts errors: finite, infinite, NaN."""
    return (math.isnan(value), 0.0 if math.isnan(value) else value)


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return "infinite" if value > 0 else "minus infinite"


def _stripped(decimal: str) -> str:
    return decimal.rstrip("0").rstrip(".") if "." in decimal else decimal
