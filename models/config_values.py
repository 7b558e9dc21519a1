"""Single values of a config.json: what they must be, and what is said when they are not."""

from collections.abc import Mapping

from compiler.contracts.errors import CheckpointError


def is_integer(value: object, *, least: int = 1) -> bool:
    """Whether it is an integer, and `least` or more; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive_number(value: object) -> bool:
    """Whether it is an integer or a float over zero; a boolean is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def integer(config: Mapping[str, object], key: str) -> int:
    """An integer that `violations` has checked."""
    value = config[key]
    assert isinstance(value, int), f"{key} is checked by violations()"
    return value


def number(value: object, default: float) -> float:
    """A number that `violations` has checked; `default` where it is None."""
    chosen = default if value is None else value
    assert isinstance(chosen, int | float), f"{chosen!r} is not a number"
    return float(chosen)


def wrong(key: str, value: object, expected: str) -> CheckpointError:
    """The error for a value that is not what its key calls for."""
    return CheckpointError(f"{key} is {value!r}, expected {expected}", where=key)


def not_yet(what: str, key: str, supported: str) -> CheckpointError:
    """The error for a feature that transformers knows and no family here has."""
    return CheckpointError(
        f"{what} is not supported yet",
        where=key,
        hint=f"supported: {supported}",
        code="not-supported-yet",
    )
