"""Composites that compute nothing: views, rows by index, parts of rows, exchanged axes."""

from math import prod

from tvm import relax

from targets.vacc.kernels.move import columns, gather, scaled_rows, swapped
from targets.vacc.lowering import UNNAMED, Composite, Lowering
from targets.vacc.relax_types import axis_of, integers, op_name


def table_rows(composite: Composite) -> Lowering:
    """Rows of an embedding's table: of floats, or of codes, each times its scales."""
    body = composite.body
    taken = [call for call in body.calls if op_name(call) == "relax.take"]
    if len(taken) == 1:
        return rows(composite)
    pairs = [(body.param(call.args[0]), body.param(call.args[1])) for call in taken]
    ((table, indices),) = (pair for pair in pairs if composite.dtypes[pair[0]] == "i8")
    ((scale, _),) = (pair for pair in pairs if composite.dtypes[pair[0]] == "f32")
    count, width = composite.shape(table)
    kernel = scaled_rows(
        count,
        prod(composite.shape(indices)),
        width=width,
        groups=prod(composite.shape(scale)[1:]),
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (table, scale, indices))


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
    (start,) = integers(call.args[2])
    first, count = start + width if start < 0 else start, composite.result[-1]
    kernel = columns(
        prod(rows),
        width,
        first=first,
        count=count,
        dtype=composite.dtypes[0],
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (0,), part=0 if first == 0 else -1 if first + count == width else 1)


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
