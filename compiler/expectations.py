"""How often a pass must fire: `fuse-qkv: layers`, `fuse-rms-norm: 2 * layers + 1`, a number."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from compiler.contracts.pass_base import PassReport
from compiler.contracts.provenance import layer_of

_FORM = re.compile(r"(?:(?P<times>\d+)\s*\*\s*)?layers(?:\s*\+\s*(?P<more>\d+))?")


@dataclass(frozen=True)
class Expectation:
    """A count of rewrites in each phase that a pass runs in.

    Attributes:
        written: As the YAML spells it.
        per_layer: Rewrites of each decoder layer.
        more: Rewrites besides.
    """

    written: str
    per_layer: int
    more: int

    def count(self, layers: int) -> int:
        """Rewrites that a model of so many layers needs."""
        return self.per_layer * layers + self.more

    def unmet(self, report: PassReport, layers: int) -> str | None:
        """What is missing or too much, by layer, and why each candidate was declined."""
        wanted, found = self.count(layers), len(report.rewrites)
        if found == wanted:
            return None
        said = f"rewrote {found} places, expected {wanted} (`{self.written}`)"
        return "; ".join([said, *_unmatched(report, self.per_layer, layers)])


def read_expectation(value: int | str) -> Expectation:
    """Parse what stands in the YAML.

    Raises:
        ValueError: It is neither a count nor `[N *] layers [+ M]`.
    """
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{value} is negative")
        return Expectation(str(value), 0, value)
    form = _FORM.fullmatch(value.strip())
    if form is None:
        raise ValueError(f"{value!r} is no count")
    return Expectation(value, int(form["times"] or 1), int(form["more"] or 0))


def _unmatched(report: PassReport, per_layer: int, layers: int) -> Iterable[str]:
    """A clause for each layer with another number of rewrites, and for what was declined there."""
    counts = [0] * layers
    for name in report.rewrites:
        layer = layer_of(name)
        if layer is not None and layer < layers:
            counts[layer] += 1
    for layer, count in enumerate(counts):
        if not per_layer or count == per_layer:
            continue
        reasons = [f"{s.node}: {s.reason}" for s in report.skips if layer_of(s.node) == layer]
        why = ", ".join(reasons) or "nothing there looks like what it matches"
        yield f"layer {layer} has {count} of {per_layer} ({why})"
    for skip in report.skips:
        if layer_of(skip.node) is None:
            yield f"{skip.node}: {skip.reason}"
