"""A contract applied to numbers: what was promised, what came, and where they part.

Non-finite values, shapes and dtypes are findings of their own, never folded into a tolerance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.contracts.pass_base import Arrays, Contract

Finding = Literal["missing", "dtype", "shape", "non-finite", "value"]


@dataclass(frozen=True)
class Breach:
    """Where an output leaves its contract: for values, the entry that does so the farthest.

    Attributes:
        output: Name of the output.
        finding: What is wrong with it.
        said: The finding as a clause: `logits[0, 3, 17] is 0.5, expected 0.25 (...)`.
        index: The entry; empty where the finding is not about one.
    """

    output: str
    finding: Finding
    said: str
    index: tuple[int, ...] = ()


def first_breach(
    contract: Contract, wanted: Arrays, found: Arrays, *, float64: Arrays | None = None
) -> Breach | None:
    """The first output of `wanted` that `found` does not keep; None when all are kept.

    Args:
        contract: `exact` asks for equal bits, the others for |found - wanted| <= atol * scale +
            rtol * |wanted|, entry by entry, where scale is the output's largest magnitude or 1: a
            small entry of a large output is a sum of large terms, and rounds as they do.
        wanted: What the outputs must be.
        found: What they are; may hold more.
        float64: The same outputs in float64, to say which of two numbers is right.
    """
    for name, value in wanted.items():
        breach = _breach(contract, name, value, found.get(name))
        if breach is not None:
            return _with_float64(breach, float64 or {})
    return None


def largest_error(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """The largest absolute difference over all outputs, in float64; NaN where one is not finite."""
    errors = [
        np.abs(found[name].astype(np.float64) - value.astype(np.float64)).max(initial=0.0)
        for name, value in wanted.items()
    ]
    return float(np.max(errors, initial=0.0))


def _breach(
    contract: Contract, name: str, wanted: np.ndarray, found: np.ndarray | None
) -> Breach | None:
    if found is None:
        return Breach(name, "missing", f"{name} is missing")
    if found.shape != wanted.shape:
        said = f"{name} has shape {list(found.shape)}, expected {list(wanted.shape)}"
        return Breach(name, "shape", said)
    if found.dtype != wanted.dtype:
        return Breach(name, "dtype", f"{name} is {found.dtype}, expected {wanted.dtype}")
    if wanted.size == 0:
        return None
    exact, given = wanted.astype(np.float64), found.astype(np.float64)
    for values, whose in ((exact, " before the pass already"), (given, "")):
        wild = np.argwhere(~np.isfinite(values))
        if len(wild):
            index = tuple(int(axis) for axis in wild[0])
            said = f"{_entry(name, index)} is {values[index]}{whose}"
            return Breach(name, "non-finite", said, index)
    error = np.abs(given - exact)
    scale = max(1.0, float(np.abs(exact).max()))
    allowed = contract.atol * scale + contract.rtol * np.abs(exact)
    index = tuple(int(axis) for axis in np.unravel_index(np.argmax(error - allowed), error.shape))
    if error[index] <= allowed[index]:
        return None
    said = (
        f"{_entry(name, index)} is {given[index]:.9g}, expected {exact[index]:.9g} "
        f"(off by {error[index]:.2g}, allowed {allowed[index]:.2g})"
    )
    return Breach(name, "value", said, index)


def _entry(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"


def _with_float64(breach: Breach, float64: Arrays) -> Breach:
    value = float64.get(breach.output)
    if value is None or not breach.index or value.ndim != len(breach.index):
        return breach
    said = f"{breach.said}; in float64 it is {value[breach.index]:.9g}"
    return Breach(breach.output, breach.finding, said, breach.index)
