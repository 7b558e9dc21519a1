"""The linears of each layer by their module's name, and what of them a rank keeps."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Skip
from compiler.contracts.placement import placements
from compiler.contracts.program import Program
from compiler.contracts.tensor_parallel import kv_heads_of_rank
from compiler.contracts.weights import Weight
from passes._divided_axes import HEAD_AXIS, follow
from passes._divided_tensor import Divided, Division, Part
from passes._match import producer

PRODUCTS = ("MatMul", "QuantizedLinearPerChannel")
_ROLE = re.compile(r"\.(q|k|v|o|gate|up|down)_proj\.weight$")
SUMMED = ("o", "down")


@dataclass(frozen=True)
class ShardedLinear:
    """A product with a parameter.

    Attributes:
        node: The product.
        parameter: Its weight as it is stored.
        scale: One for each output, where the weight is int8.
        output_axis: Of the stored weight.
    """

    node: gs.Node
    parameter: gs.Tensor
    scale: gs.Tensor | None
    output_axis: int


@dataclass(frozen=True)
class Share:
    """Which share is taken, and of what heads."""

    ways: int
    rank: int
    kv_heads: int
    head_dim: int

    def share(self, size: int, unit: int = 1) -> Part:
        """An equal stretch."""
        local = size // self.ways
        return Part(size, unit, ((self.rank * local, (self.rank + 1) * local),))

    def key_heads(self) -> Part:
        """The stretches of the key heads that this rank's queries read."""
        heads = kv_heads_of_rank(self.kv_heads, self.ways, self.rank)
        stretches = [(head * self.head_dim, (head + 1) * self.head_dim) for head in heads]
        return Part(self.kv_heads * self.head_dim, self.head_dim, tuple(joined(stretches)))


def joined(stretches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, stop = stretches[0]
    for low, high in stretches[1:]:
        if low != stop:
            yield start, stop
            start = low
        stop = high
    yield start, stop


def linear_of(program: Program, node: gs.Node) -> ShardedLinear | str | None:
    """None where the node multiplies by no weight of the checkpoint."""
    tensor, scale, is_turned = node.inputs[1], None, False
    made = producer(tensor)
    while made is not None and made.op in ("Cast", "Transpose", "DequantizeLinear"):
        is_turned ^= made.op == "Transpose"
        if made.op == "DequantizeLinear":
            scale = made.inputs[1]
        tensor = made.inputs[0]
        made = producer(tensor)
    if made is not None and made.op == "UnpackedWeight":
        return f"its weight {made.inputs[0].name} is packed already"
    weight = program.weights.get(tensor.name)
    if weight is None or len(weight.shape) != 2:
        return None
    if node.op != "MatMul":
        scale, is_turned = node.inputs[2], True
    if len(tensor.outputs) != 1:
        return f"{tensor.name} is read by {[reader.name for reader in tensor.outputs]}"
    if scale is not None and (len(scale.shape) != 1 or scale.name not in program.weights):
        return f"its scales {scale.name} are not one for each output"
    return ShardedLinear(node, tensor, scale, 0 if is_turned else 1)


def roles_of(weight: Weight, axis: int) -> list[tuple[str, int]] | str:
    """(role, width) of each stretch of a weight's outputs, in order; empty: none of a layer's."""
    places = sorted(placements(weight, axis), key=lambda one: one.start)
    named = [(_ROLE.search(one.source), one) for one in places]
    if not any(role for role, _ in named):
        return []
    end = 0
    for role, one in named:
        if role is None or one.start != end or one.first != 0:
            return f"its outputs are {', '.join(f'{p.source} {p}' for p in places)}"
        end += one.count
    if end != weight.shape[axis]:
        return f"{weight.shape[axis] - end} of its outputs belong to no module"
    return [(role[1], one.count) for role, one in named if role is not None]


def part_of(role: str, width: int, rank: Share) -> Part | str:
    """What a rank keeps of the outputs of one projection."""
    if role in ("k", "v"):
        keys = rank.key_heads()
        return keys if keys.full == width else f"it makes {width} of {keys.full} key channels"
    unit = rank.head_dim if role == "q" else 1
    if width // unit % rank.ways or width % unit:
        return f"its {width // unit} outputs of {unit} do not divide by {rank.ways}"
    return rank.share(width, unit)


@dataclass(frozen=True)
class Plan:
    """What is cut: linears by their outputs and by their inputs, and what follows from it."""

    columns: list[tuple[ShardedLinear, tuple[Part, ...]]]
    sums: list[tuple[ShardedLinear, Part]]
    division: Division


def plan_of(program: Program, rank: Share) -> Plan | Skip:
    columns: list[tuple[ShardedLinear, tuple[Part, ...]]] = []
    sums: list[tuple[ShardedLinear, Part]] = []
    for node in program.graph.nodes:
        linear = linear_of(program, node) if node.op in PRODUCTS else None
        if linear is None:
            continue
        if isinstance(linear, str):
            return Skip(node.name, linear)
        weight = program.weights[linear.parameter.name]
        roles = roles_of(weight, linear.output_axis)
        if isinstance(roles, str):
            return Skip(node.name, roles)
        if any(role in SUMMED for role, _ in roles):
            unit = rank.head_dim if roles[0][0] == "o" else 1
            inputs = weight.shape[1 - linear.output_axis]
            if len(roles) > 1 or inputs % unit or inputs // unit % rank.ways:
                return Skip(node.name, f"its {inputs} inputs do not divide by {rank.ways}")
            sums.append((linear, rank.share(inputs)))
        elif roles:
            parts = [part_of(role, width, rank) for role, width in roles]
            for part in parts:
                if isinstance(part, str):
                    return Skip(node.name, part)
            columns.append((linear, tuple(part for part in parts if not isinstance(part, str))))
    if not columns or not sums:
        return Skip("graph", "no linear of a layer is in it")
    division = Division(program, rank.ways, {id(linear.node) for linear, _ in sums}, {})
    division.found.update(_seeds(program, columns, rank))
    problem = follow(division)
    return _division_problem(problem, sums, division) or Plan(columns, sums, division)


def _division_problem(
    problem: Skip | None, sums: Sequence[tuple[ShardedLinear, Part]], division: Division
) -> Skip | None:
    """What stands in the way; a sum over what is whole is found here."""
    if problem is not None:
        return problem
    for linear, part in sums:
        given = division.found.get(id(linear.node.inputs[0]))
        if given is None or given.local[-1] != part.local:
            return Skip(linear.node.name, "what it sums over is not divided as its weight is")
    return None


def _seeds(
    program: Program, columns: Sequence[tuple[ShardedLinear, tuple[Part, ...]]], rank: Share
) -> dict[int, Divided]:
    """The outputs of column-split products, and the caches."""
    found: dict[int, Divided] = {}
    for linear, parts in columns:
        full = (1, program.tokens, sum(part.full for part in parts))
        local = (*full[:2], sum(part.local for part in parts))
        found[id(linear.node.outputs[0])] = Divided(frozenset((2,)), full, local, parts)
    local_heads = rank.key_heads().local // rank.head_dim
    for cache in caches_of(program):
        context, heads, width = cache.shape
        shape = (context, local_heads, width)
        found[id(cache)] = Divided(frozenset((HEAD_AXIS,)), (context, heads, width), shape)
    return found


def caches_of(program: Program) -> list[gs.Tensor]:
    return [tensor for tensor in program.graph.inputs if tensor.name in program.aliases.values()]
