"""Composites that compute nothing: views, rows by index, parts of rows, exchanged axes."""

from math import prod

from tvm import relax

from targets.vacc.kernels.move import columns, gather, swapped
from targets.vacc.lowering import UNNAMED, Composite, Lowering
from targets.vacc.relax_types import axis_of, integers, op_name


def rows(composite: Composite) -> Lowering:
    """Rows of a table, or of a tensor whose axes before are 1."""
    call = composite.body.find("relax.take")
    assert call is not None, "rows are taken"
    table, indices = (composite.body.param(value) for value in call.args)
    axis = axis_of(call)
    assert axis is not None, "the pattern takes rows of an axis"
    shape = composite.shape(table)
    kernel = gather(
        shape[axis],
        prod(composite.shape(indices)),
        width=prod(shape[axis + 1 :]),
        dtype=composite.dtypes[table],
        composite=composite.name,
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (table, indices))


def move(composite: Composite) -> Lowering:
    """A view is no work."""
    (call,) = composite.body.calls
    match op_name(call):
        case "relax.take":
            return rows(composite)
        case "relax.strided_slice":
            return _part(composite, call)
        case "relax.permute_dims":
            return _turned(composite)
    return Lowering(None, (0,))


def _part(composite: Composite, call: relax.Call) -> Lowering:
    *rows, width = composite.shape(0)
    (first,) = integers(call.args[2])
    kernel = columns(
        prod(rows),
        width,
        first=first + width if first < 0 else first,
        count=composite.result[-1],
        dtype=composite.dtypes[0],
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (0,))


def _turned(composite: Composite) -> Lowering:
    _, rows, count, width = composite.shape(0)
    if 1 in (rows, count):
        return Lowering(None, (0,))
    kernel = swapped(
        rows,
        count,
        width=width,
        dtype=composite.dtypes[0],
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (0,))
