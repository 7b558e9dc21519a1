"""A prefill graph cut at its layers' borders, each piece a graph of its own.

    tokens -> [embed] -> hidden -> [layer 0] -> hidden -> ... -> [layer n-1] -> hidden -> [head]

A border is what the first norm of the next layer reads. What all layers read (rotary tables, masks)
is computed from the lengths in each piece anew. Tensors are renamed by the order in which they
occur, so that layers of one kind have one graph to the byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from compiler.contracts.errors import PassError
from compiler.contracts.program import Program
from compiler.contracts.taps import Tap
from compiler.numerics.graph_piece import graph_piece, tensor_types
from compiler.numerics.program_taps import program_taps


@dataclass(frozen=True)
class Piece:
    """One piece.

    Attributes:
        model: Its graph under canonical names, serialized; equal pieces are equal here.
        inputs: Name in the program -> canonical name.
        outputs: Name in the program -> canonical name.
        dtypes: ONNX element type of each input and output, by name in the program.
        shapes: Of each input, by name in the program.
        tables: Inputs of which rows are looked up by token; they may be given with fewer rows.
    """

    model: bytes
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    dtypes: Mapping[str, int]
    shapes: Mapping[str, Sequence[int | str]]
    tables: frozenset[str]


@dataclass(frozen=True)
class Pieces:
    """The pieces, and the tensors between them: `borders[i]` is what layer i takes."""

    embed: Piece
    layers: tuple[Piece, ...]
    head: Piece
    borders: tuple[str, ...]


def cut_at_layers(program: Program, watched: Sequence[str]) -> Pieces:
    """Cut a program.

    Args:
        program: Whose logits are every token's.
        watched: Tensors within layers that their pieces give as well.

    Raises:
        PassError: A layer reads more of an earlier one than what lies on the border.
    """
    cutter = _Cutter(program)
    borders = _borders(program)
    layers = tuple(
        cutter.piece(
            f"layer {layer}",
            [borders[layer + 1], *_caches(program, layer)],
            given=borders[layer],
            optional=watched,
        )
        for layer in range(program.layers)
    )
    embed = cutter.piece("the embedding", [borders[0]], given="input_ids")
    head = cutter.piece("the head", ["logits"], given=borders[-1])
    return Pieces(embed, layers, head, borders)


def _borders(program: Program) -> tuple[str, ...]:
    taps = program_taps(program)
    wanted = [Tap(None, "embed"), *(Tap(layer, "resid2") for layer in range(program.layers))]
    missing = [tap for tap in wanted if tap not in taps]
    if missing:
        raise PassError(
            f"the graph does not hold {missing[0]}, at which it would be cut",
            where=program.phase,
            hint="a pass must keep the names of the layers' norms",
            code="no-border",
        )
    return tuple(taps[tap].tensor for tap in wanted)


def _caches(program: Program, layer: int) -> list[str]:
    prefix = f"present.{layer}."
    return [spec.name for spec in program.outputs() if spec.name.startswith(prefix)]


class _Cutter:
    """The searches in one graph."""

    def __init__(self, program: Program) -> None:
        self._model = program.model()
        self._types = tensor_types(self._model)
        self._makers = {name: node for node in self._model.graph.node for name in node.output}
        self._activations = {spec.name for spec in program.inputs()}

    def piece(
        self, what: str, made: Sequence[str], *, given: str, optional: Sequence[str] = ()
    ) -> Piece:
        """What makes the tensors `made` from `given`, lengths, caches and parameters."""
        nodes = self._above(made, given)
        own = {name for node in nodes for name in node.output}
        made = [*made, *(name for name in optional if name in own and name not in made)]
        # The shape of the tokens may be asked for anywhere.
        read = {name for node in nodes if node.op_type != "Shape" for name in node.input}
        layers = {name.split(".")[1] for name in read if name.startswith("past_key_values.")}
        if (given != "input_ids" and "input_ids" in read) or len(layers) > 1:
            raise PassError(
                f"{what} reads more of what is before it than {given}",
                where=what,
                hint="a pass joined what stands on both sides of a layer's border",
                code="no-border",
            )
        return self._canonical(graph_piece(self._model, nodes, made, self._types))

    def _above(self, made: Sequence[str], given: str) -> list[onnx.NodeProto]:
        """What `made` depends on, each node behind what it reads, in an order of its own."""
        found: dict[int, onnx.NodeProto] = {}
        entered: set[int] = set()
        pending = [(name, False) for name in reversed(made)]
        while pending:
            name, is_done = pending.pop()
            node = self._makers.get(name)
            if name == given or node is None:
                continue
            if is_done:
                found[id(node)] = node
            elif id(node) not in entered:
                entered.add(id(node))
                pending.append((name, True))
                pending += [(read, False) for read in reversed(node.input)]
        return list(found.values())

    def _canonical(self, model: onnx.ModelProto) -> Piece:
        graph = model.graph
        given = {value.name: _shape(value) for value in graph.input}
        made = [output.name for output in graph.output]
        tables = frozenset(
            node.input[0]
            for node in graph.node
            if node.op_type == "Gather" and node.input[1] == "input_ids"
        )
        names = {"": ""}
        for node in graph.node:
            for name in (*node.input, *node.output):
                names.setdefault(name, f"t{len(names)}")
            reads, makes = ([names[name] for name in side] for side in (node.input, node.output))
            del node.input[:], node.output[:]
            node.input.extend(reads)
            node.output.extend(makes)
            node.ClearField("name")
            del node.metadata_props[:]
        for value in graph.input:
            if value.name in tables:
                value.type.tensor_type.shape.dim[0].dim_param = "rows"
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = names[value.name]
        graph.initializer.sort(key=lambda tensor: int(tensor.name[1:]))
        functions = _called(model.functions, {(n.domain, n.op_type) for n in graph.node})
        del model.functions[:]
        model.functions.extend(functions)
        return Piece(
            model=model.SerializeToString(deterministic=True),
            inputs={name: names[name] for name in given},
            outputs={name: names[name] for name in made},
            dtypes={n: self._types[n].type.tensor_type.elem_type for n in (*given, *made)},
            shapes=given,
            tables=tables,
        )


def _called(
    functions: Sequence[onnx.FunctionProto], used: set[tuple[str, str]]
) -> list[onnx.FunctionProto]:
    """The functions that nodes call, or that those call."""
    found = [one for one in functions if (one.domain, one.name) in used]
    inner = {(node.domain, node.op_type) for one in found for node in one.node}
    return found if inner <= used else _called(functions, used | inner)


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_param or dim.dim_value for dim in dims)
