"""Rows of an embedding's table, and what computes nothing: views, parts, exchanged axes.

astype(take(E, ids))                                                          float16
astype(take(E, ids)) * expand_dims(take(scale, ids))                          int8
reshape(reshape(astype(take(E, ids))) * expand_dims(take(scale, ids)))        int8 in groups
"""

from tvm.relax.dpl import DFPattern, is_op, wildcard
from tvm.relax.transform import PatternCheckContext

from targets.vacc.pattern_rows import Row, either, is_swap, last_axis_bounds
from targets.vacc.relax_types import axis_of, call_of, dtype_of, shape_of, tensor_type


def tables() -> list[Row]:
    """Codes first: of those, too, the rows are widened."""
    return [_scaled_embedding(has_groups=True), _scaled_embedding(has_groups=False), _embedding()]


def _scaled_embedding(*, has_groups: bool) -> Row:
    table, scale, ids = wildcard(), wildcard(), wildcard()
    rows = is_op("relax.take")(table, ids)
    steps = is_op("relax.take")(scale, ids)
    wide: DFPattern = is_op("relax.astype")(rows)
    if has_groups:
        wide = is_op("relax.reshape")(wide, wildcard())
    scaled = either("relax.multiply", wide, is_op("relax.expand_dims")(steps))
    if has_groups:
        scaled = is_op("relax.reshape")(scaled, wildcard())
    marks = {"table": table, "scale": scale, "rows": rows, "steps": steps}

    def problem(context: PatternCheckContext) -> str:
        found = context.annotated_expr
        is_table = dtype_of(found["table"]) == "int8" and len(shape_of(found["table"])) == 2
        is_by_row = axis_of(found["rows"]) == axis_of(found["steps"]) == 0
        count, width = shape_of(found["table"]) if is_table else (0, 0)
        rows, *groups = shape_of(found["scale"])
        is_even = rows == count and len(groups) == has_groups and not any(width % g for g in groups)
        return "" if is_table and is_by_row and is_even else "it reads no table of int8 codes"

    return "embedding", scaled, marks, problem


def _embedding() -> Row:
    table, ids = wildcard(), wildcard()
    rows = is_op("relax.take")(table, ids)
    marks = {"table": table, "rows": rows}

    def problem(context: PatternCheckContext) -> str:
        found = context.annotated_expr
        is_table = dtype_of(found["table"]) == "float16" and len(shape_of(found["table"])) == 2
        return "" if is_table and axis_of(found["rows"]) == 0 else "it reads no float16 table"

    return "embedding", is_op("relax.astype")(rows), marks, problem


def moves() -> list[Row]:
    """One operator each."""
    x = wildcard()
    four = [wildcard() for _ in range(4)]
    return [
        ("move", is_op("relax.reshape")(x, wildcard()), {"x": x}, _is_float),
        ("move", is_op("relax.expand_dims")(x), {"x": x}, _is_float),
        ("move", is_op("relax.squeeze")(x), {"x": x}, _is_float),
        ("move", is_op("relax.take")(x, wildcard()), {"x": x}, _rows_problem),
        ("move", is_op("relax.strided_slice")(x, *four), {"x": x}, _part_problem),
        ("move", is_op("relax.permute_dims")(x), {"x": x}, _turn_problem),
    ]


def _is_float(context: PatternCheckContext) -> str:
    x = context.annotated_expr["x"]
    is_float = tensor_type(x) is not None and dtype_of(x) == "float32"
    return "" if is_float else f"it moves {dtype_of(x)}"


def _rows_problem(context: PatternCheckContext) -> str:
    call, axis = call_of(context.matched_expr), axis_of(context.matched_expr)
    before = (0,) if axis is None else shape_of(call.args[0])[:axis]
    is_plain = set(before) <= {1} and dtype_of(call.args[1]) == "int64"
    return _is_float(context) or ("" if is_plain else "it takes no rows")


def _part_problem(context: PatternCheckContext) -> str:
    is_part = last_axis_bounds(context.matched_expr) is not None
    return _is_float(context) or ("" if is_part else "it slices another axis than the last")


def _turn_problem(context: PatternCheckContext) -> str:
    shape = shape_of(context.matched_expr)
    is_plain = len(shape) == 4 and shape[0] == 1 and is_swap(context.matched_expr)
    return _is_float(context) or ("" if is_plain else "it transposes other axes")
