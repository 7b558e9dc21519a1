"""What a row of the table of patterns is, and what several of them ask."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from tvm import relax
from tvm.relax.dpl import DFPattern, is_op
from tvm.relax.transform import PatternCheckContext

from targets.vacc.relax_types import axes_of, call_of, integers, op_name, shape_of

# A pattern may match what another one is for: that is no refusal.
ANOTHER = "it is for another pattern"

Check: TypeAlias = Callable[[PatternCheckContext], str]
# Composite, pattern, the parts that its check asks for, and what that says against it.
Row: TypeAlias = tuple[str, DFPattern, Mapping[str, DFPattern], Check]


def either(op: str, one: DFPattern, other: DFPattern) -> DFPattern:
    """The operator on both, in either order."""
    return is_op(op)(one, other) | is_op(op)(other, one)


def is_swap(turned: relax.Expr) -> bool:
    """Whether it exchanges the second and third of four axes."""
    return op_name(turned) == "relax.permute_dims" and axes_of(turned) == (0, 2, 1, 3)


def last_axis_bounds(call: relax.Expr) -> tuple[int, int] | None:
    """(first, end) of a slice of the last axis with step 1."""
    x, axes, first, end, step = call_of(call).args
    rank, width = len(shape_of(x)), shape_of(x)[-1]
    if [axis % rank for axis in integers(axes)] != [rank - 1] or integers(step) != (1,):
        return None
    bounds = [
        min(bound + width if bound < 0 else bound, width)
        for (bound,) in (integers(first), integers(end))
    ]
    return bounds[0], bounds[1]
