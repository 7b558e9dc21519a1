"""Where two graphs of one model begin to differ: the first tensor that both have under one name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from compiler.contracts.pass_base import Arrays
from compiler.contracts.provenance import layer_of
from compiler.numerics.reference_run import ReferenceSession, with_outputs

if TYPE_CHECKING:
    from onnxruntime import OrtValue

# What counts as a difference, as a share of the tensor's largest magnitude: a fault is looked for
# before rounding is.
_SHARES = (1e-3, 1e-5, 0.0)


@dataclass(frozen=True)
class Run:
    """A graph and everything that it takes."""

    model: onnx.ModelProto
    feeds: "Mapping[str, np.ndarray | OrtValue]"


@dataclass(frozen=True)
class Divergence:
    """The first tensor that differs, in the order of the later graph.

    Attributes:
        tensor: Its name.
        node: The node of the later graph that makes it.
        agreeing: Tensors of both graphs that come before it and agree.
        error: Largest absolute difference.
        scale: Largest magnitude before.
    """

    tensor: str
    node: str
    agreeing: tuple[str, ...]
    error: float
    scale: float

    @property
    def layer(self) -> int | None:
        """The decoder layer that the tensor or its node is named after."""
        layer = layer_of(self.node)
        return layer_of(self.tensor) if layer is None else layer

    def __str__(self) -> str:
        place = "outside the layers" if self.layer is None else f"in layer {self.layer}"
        return f"it begins {place}, at {self.node} (off by {self.error:.2g} of {self.scale:.2g})"


def first_divergence(before: Run, after: Run, *, wanted: Arrays) -> Divergence | None:
    """Run both graphs with every tensor that they share as an output, and compare in order.

    Args:
        before: The graph before a pass.
        after: The graph after it.
        wanted: What the outputs of `after` must be.

    Returns:
        None where no tensor between inputs and outputs is shared, or all agree to the bit.
    """
    made = {name: node.name for node in after.model.graph.node for name in node.output}
    earlier = {name for node in before.model.graph.node for name in node.output}
    shared = [name for name in made if name in earlier]
    old, new = {**_values(before, shared), **wanted}, _values(after, shared)
    compared = {
        name: _difference(old[name], new[name])
        for name in shared
        if old[name].shape == new[name].shape and old[name].dtype.kind in "fV"
    }
    for share in _SHARES:
        agreeing: list[str] = []
        for name, (error, scale) in compared.items():
            if not error <= share * scale:  # NaN is a difference, too
                return Divergence(name, made[name], tuple(agreeing), error, scale)
            agreeing.append(name)
    return None


def _values(run: Run, names: list[str]) -> dict[str, np.ndarray]:
    return ReferenceSession(with_outputs(run.model, names)).run(run.feeds)


def _difference(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    exact, given = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which is what is wanted
        error = np.abs(given - exact).max(initial=0.0)
    return float(error), float(np.abs(exact).max(initial=0.0))
