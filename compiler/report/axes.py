"""From values to pixels: decades along an axis, layers side by side."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Shown where no value is positive, so that zeros have an axis to stand under.
_NO_DECADES = (-9, 0)
_MINOR_UP_TO = 4
_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class LogAxis:
    """Whole decades between two pixels.

    Attributes:
        low: Exponent at `start`.
        high: Exponent at `stop`; larger than `low`.
        start: Pixel; larger than `stop` on an axis that goes up.
        stop: Pixel.
    """

    low: int
    high: int
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Pixel of a positive value."""
        return self._at_exponent(math.log10(value))

    def ticks(self, most: int) -> tuple[tuple[float, str], ...]:
        """(pixel, label) of at most `most` decades."""
        step = step_for(self.high - self.low + 1, most)
        exponents = [power for power in range(self.low, self.high + 1) if power % step == 0]
        return tuple((self._at_exponent(power), _power(power)) for power in exponents)

    def minor(self) -> tuple[float, ...]:
        """Pixels of 2 to 9 in each decade, where there is room for them."""
        if self.high - self.low > _MINOR_UP_TO:
            return ()
        powers = range(self.low, self.high)
        return tuple(
            self._at_exponent(power + math.log10(k)) for power in powers for k in range(2, 10)
        )

    def _at_exponent(self, exponent: float) -> float:
        share = (exponent - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def log_axis(values: Iterable[float], *, start: float, stop: float) -> LogAxis:
    """The decades that hold every positive, finite value."""
    logs = [math.log10(value) for value in values if is_on_log(value)]
    if not logs:
        return LogAxis(*_NO_DECADES, start=start, stop=stop)
    low = math.floor(min(logs))
    return LogAxis(low, max(math.ceil(max(logs)), low + 1), start=start, stop=stop)


def is_on_log(value: float) -> bool:
    """Whether a logarithmic axis has a place for it."""
    return math.isfinite(value) and value > 0


def step_for(count: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that leaves at most `most` of `count`."""
    scale = 1
    while True:
        for step in _STEPS:
            if math.ceil(count / (step * scale)) <= most:
                return step * scale
        scale *= 10


@dataclass(frozen=True)
class Bands:
    """Equal columns: the layers, in the chart and in the map below it alike.

    Attributes:
        count: Of columns.
        left: Pixel at which the first begins.
        width: Of one column, in pixels.
    """

    count: int
    left: float
    width: float

    @property
    def right(self) -> float:
        """Pixel at which the last ends."""
        return self.left + self.count * self.width

    def middle(self, index: int) -> float:
        """Pixel of a column's middle."""
        return self.left + (index + 0.5) * self.width

    def labelled(self) -> range:
        """Columns that bear their number."""
        return range(0, self.count, step_for(self.count, 31))


def bands(count: int, *, left: float, right: float) -> Bands:
    """Columns that fill the room, or less of it where there are few."""
    room = min(right - left, max(320.0, 64.0 * count))
    return Bands(count, left, room / count)


def _power(exponent: int) -> str:
    return {0: "1", 1: "10", 2: "100"}.get(exponent, f"1e{exponent}")
