"""What becomes of the axes that ranks divide, from the linears that make them to those that sum.

A column-split linear leaves a flat axis of heads, or of MLP channels; Reshapes, Transposes and
products carry it on, and what each rank keeps of it is worked out operator by operator:

    [1, T, H * d] -> Reshape [1, T, H, d] -> Transpose [1, H, T, d] -> Reshape [1, K, G, T, d]
    [1, T, h * d]            [1, T, h, d]              [1, h, T, d]            [1, k, g, T, d]

Nothing is changed here: what must change is collected. An operator that is not known to work head
by head ends it, with its name.
"""

from collections.abc import Callable, Mapping, Sequence

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Skip
from passes._divided_tensor import Divided, Division, Part, reshaped, resolved
from passes._match import constant, known_shapes, through

HEAD_AXIS = 1  # of a cache [C, heads, d] and of its new rows [T, heads, d]

# Output entries depend on the input entries at the same place alone.
_BY_ENTRY = ("Add", "Cast", "Div", "FusedSiluMul", "Identity", "Mul", "Neg", "Pow", "Reciprocal")
_BY_ENTRY += ("Sigmoid", "Sqrt", "Sub")
# The same but for the last axis, along which they work.
_BY_ROW = ("FusedRMSNorm", "FusedRotary")
# They work along the axes that an attribute or a constant names.
_ALONG_AXES = ("Concat", "ReduceMean", "ReduceSum", "Slice", "Softmax")


def follow(division: Division) -> Skip | None:
    """Carry the divided axes through the graph; what stands in the way, if anything does."""
    division.shapes = known_shapes(division.program)
    for node in division.program.graph.nodes:
        given = [division.found.get(id(tensor)) for tensor in node.inputs]
        if not any(given):
            continue
        if any(id(tensor) in division.found for tensor in node.outputs):
            return Skip(node.name, "it reads what is divided, and divides itself")
        is_sum = id(node) in division.sums
        problem = _sum_problem(given) if is_sum else _step(node, division)
        if problem is not None:
            return Skip(node.name, problem)
    outputs = division.program.graph.outputs
    for tensor in (one for one in outputs if id(one) in division.found):
        if tensor.name not in division.program.aliases:
            return Skip(tensor.name, "it is an output, and would be divided")
    return None


def _sum_problem(given: Sequence[Divided | None]) -> str | None:
    """Why a linear does not sum over a divided last axis; None where it does."""
    x = given[0]
    if x is None or any(given[1:]) or x.axes != {len(x.full) - 1}:
        return "it does not sum over a divided last axis"
    return None


def _step(node: gs.Node, division: Division) -> str | None:
    """Find the outputs of one node, or why it cannot be divided."""
    rule = _RULES.get(node.op)
    if rule is None:
        return f"{node.op} is not known to work head by head"
    found = rule(node, division)
    if isinstance(found, str):
        return found
    for tensor, divided in zip(node.outputs, found, strict=True):
        division.found[id(tensor)] = divided
    return None


_Found = Sequence[Divided] | str
_Rule = Callable[[gs.Node, Division], _Found]


def _by_entry(node: gs.Node, division: Division) -> _Found:
    """Inputs broadcast against each other: what is divided in one is divided in all, or 1 there."""
    given: list[tuple[gs.Tensor, Divided | None, tuple[int, ...]]] = []
    for tensor in node.inputs:
        divided = division.found.get(id(tensor))
        shape = divided.full if divided else division.shape(tensor)
        if shape is None:
            return f"the shape of {tensor.name} is not known"
        given.append((tensor, divided, shape))
    rank = max(len(shape) for _, _, shape in given)
    full, local, axes = [1] * rank, [1] * rank, set[int]()
    parts = next((one.parts for _, one, _ in given if one and one.parts), ())
    for _, divided, shape in given:
        shift = rank - len(shape)
        for axis, size in enumerate(shape, shift):
            full[axis] = max(full[axis], size)
            if divided is None or axis - shift not in divided.axes:
                continue
            if axis in axes and local[axis] != divided.local[axis - shift]:
                return f"its operands are divided in other ways on axis {axis}"
            axes.add(axis)
            local[axis] = divided.local[axis - shift]
    for tensor, divided, shape in given:
        shift = rank - len(shape)
        whole = [a for a in axes if a >= shift and (not divided or a - shift not in divided.axes)]
        if all(shape[axis - shift] == 1 for axis in whole):
            continue
        problem = _cut_vector(tensor, shape, parts, division)
        if problem is not None:
            return problem
    shown = tuple(local[axis] if axis in axes else full[axis] for axis in range(rank))
    return [Divided(frozenset(axes), tuple(full), shown, parts)]


def _cut_vector(
    tensor: gs.Tensor, shape: tuple[int, ...], parts: tuple[Part, ...], division: Division
) -> str | None:
    """A parameter along a flat axis (a bias) is divided with it."""
    parameter = through(tensor, "Cast")
    is_own = parameter.name in division.program.weights and len(parameter.outputs) == 1
    if len(shape) != 1 or shape[0] != sum(part.full for part in parts) or not is_own:
        return f"{tensor.name} of {list(shape)} is whole where the other operand is divided"
    division.vectors[parameter.name] = parts
    return None


def _by_row(node: gs.Node, division: Division) -> _Found:
    found = _by_entry(node, division)
    if isinstance(found, str):
        return found
    return "it works along a divided axis" if len(found[0].full) - 1 in found[0].axes else found


def _axes_of(node: gs.Node, rank: int) -> list[int] | None:
    """The axes that a node works along, from the left; None where they are not known."""
    if node.op in ("Concat", "Softmax"):
        return [int(node.attrs.get("axis", -1)) % rank]
    index = 3 if node.op == "Slice" else 1
    axes = constant(node.inputs[index]) if len(node.inputs) > index else None
    return None if axes is None else [int(axis) % rank for axis in axes.ravel()]


def _along_axes(node: gs.Node, division: Division) -> _Found:
    given = [division.found.get(id(tensor)) for tensor in node.inputs]
    one = given[0]
    tensors = given if node.op == "Concat" else given[:1]
    if one is None or any(other is None or other.axes != one.axes for other in tensors):
        return "it joins what is divided with what is not"
    axes = _axes_of(node, len(one.full))
    if axes is None or one.axes & set(axes):
        return "it works along a divided axis"
    full = division.shape(node.outputs[0])
    if full is None or len(full) != len(one.full):
        return f"the shape of {node.outputs[0].name} is not known"
    local = tuple(one.local[a] if a in one.axes else size for a, size in enumerate(full))
    return [Divided(one.axes, full, local)]


def _transpose(node: gs.Node, division: Division) -> _Found:
    one = division.found[id(node.inputs[0])]
    rank = len(one.full)
    perm = [int(axis) for axis in node.attrs.get("perm", range(rank)[::-1])]
    axes = frozenset(perm.index(axis) for axis in one.axes)
    full, local = (tuple(shape[axis] for axis in perm) for shape in (one.full, one.local))
    return [Divided(axes, full, local)]


def _unsqueeze(node: gs.Node, division: Division) -> _Found:
    one = division.found[id(node.inputs[0])]
    added = constant(node.inputs[1])
    if added is None:
        return "its axes are not constant"
    rank = len(one.full) + added.size
    new = {int(axis) % rank for axis in added.ravel()}
    old = [axis for axis in range(rank) if axis not in new]
    full, local = [1] * rank, [1] * rank
    for axis, *sizes in zip(old, one.full, one.local, strict=True):
        full[axis], local[axis] = sizes
    return [Divided(frozenset(old[axis] for axis in one.axes), tuple(full), tuple(local))]


def _matmul(node: gs.Node, division: Division) -> _Found:
    """Batch axes broadcast; the two that are multiplied must be whole."""
    shapes: list[tuple[int, ...]] = []
    for tensor in node.inputs:
        divided = division.found.get(id(tensor))
        shape = divided.full if divided else division.shape(tensor)
        if shape is None or len(shape) < 2:
            return f"the shape of {tensor.name} is not known"
        if divided is not None and {len(shape) - 1, len(shape) - 2} & divided.axes:
            return "it multiplies along a divided axis"
        shapes.append(shape)
    batches = _by_entry(node, division)
    if isinstance(batches, str):
        return batches
    tail = (shapes[0][-2], shapes[1][-1])
    one = batches[0]
    return [Divided(one.axes, (*one.full[:-2], *tail), (*one.local[:-2], *tail))]


def _split(node: gs.Node, division: Division) -> _Found:
    """Of what one joined product made: a part each."""
    one = division.found[id(node.inputs[0])]
    last = len(one.full) - 1
    widths = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if int(node.attrs.get("axis", 0)) % (last + 1) != last or one.axes != {last}:
        return "it splits another axis than the divided one"
    if widths is None or widths.tolist() != [part.full for part in one.parts]:
        return "it splits elsewhere than where the product was joined"
    division.constants.append((node, 1, [part.local for part in one.parts]))
    return [
        Divided(one.axes, (*one.full[:-1], part.full), (*one.local[:-1], part.local), (part,))
        for part in one.parts
    ]


def _reshape(node: gs.Node, division: Division) -> _Found:
    one = division.found[id(node.inputs[0])]
    written = constant(node.inputs[1])
    if written is None:
        return "its shape is not constant"
    entries = [int(entry) for entry in written.ravel()]
    full = resolved(entries, one.full)
    found = reshaped(one, full, division.ways)
    if isinstance(found, str):
        return found
    changed = [
        size if entry > 0 else entry for entry, size in zip(entries, found.local, strict=True)
    ]
    division.constants.append((node, 1, changed))
    return [found]


def _cache_update(node: gs.Node, division: Division) -> _Found:
    cache, rows = (division.found.get(id(tensor)) for tensor in node.inputs[:2])
    if cache is None or rows is None:
        return "it writes whole rows to a divided cache, or the other way round"
    if rows.axes != {HEAD_AXIS} or rows.local[HEAD_AXIS] != cache.local[HEAD_AXIS]:
        return f"its rows are divided to {list(rows.local)}, its cache to {list(cache.local)}"
    return [cache]


def _attention(node: gs.Node, division: Division) -> _Found:
    q, keys, values = (division.found.get(id(tensor)) for tensor in node.inputs[:3])
    if q is None or keys is None or keys != values or q.axes != {1}:
        return "its queries, keys and values are not divided alike"
    _, heads, tokens, head_dim = q.local
    kv_heads = keys.local[HEAD_AXIS]
    if heads % kv_heads:
        return f"a rank has {heads} query heads and {kv_heads} key heads"
    division.attributes += [
        (node, "grouped", [1, kv_heads, heads // kv_heads, tokens, head_dim]),
        (node, "by_head", [1, heads, tokens, head_dim]),
        (node, "merged", [1, tokens, heads * head_dim]),
    ]
    full = (1, tokens, q.full[1] * head_dim)
    return [Divided(frozenset((2,)), full, (1, tokens, heads * head_dim))]


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_BY_ENTRY, _by_entry),
    **dict.fromkeys(_BY_ROW, _by_row),
    **dict.fromkeys(_ALONG_AXES, _along_axes),
    "CacheUpdate": _cache_update,
    "FusedAttention": _attention,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Split": _split,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
