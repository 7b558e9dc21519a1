"""Which matrices `annotate-int8-qdq` quantizes: linears and embeddings, by globs over modules."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd

import onnx_graphsurgeon as gs

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Skip
from compiler.contracts.program import Program
from compiler.contracts.weights import Weight, transpose
from passes._match import is_scale, module_of, through

_PASS = "annotate-int8-qdq"
# The accelerator's product with an int8 weight, which is quantized already.
_QUANTIZED_PRODUCT = "QuantizedLinearPerChannel"
# What may stand between a parameter and the product that makes it a linear's.
_BETWEEN = ("Cast", "Reshape", "Transpose", "DequantizeLinear")
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Matrix:
    """A parameter with the node that reads it, and the modules whose weights it holds.

    Attributes:
        node: A product, or the Gather of an embedding.
        parameter: The matrix.
        rows: Its expression as the checkpoint lays it out, [out, in].
        modules: Several where the weight is joined.
    """

    node: gs.Node
    parameter: gs.Tensor
    rows: Weight
    modules: tuple[str, ...]

    @property
    def inputs(self) -> int:
        """Number of values that make one output."""
        return self.rows.shape[1]

    def problem(self) -> str | None:
        """Why it is not in the canonical form that can be quantized; None when it is."""
        if self.rows.dtype == "int8":
            return "its weight is quantized already"
        is_canonical = self.node.op == "Gather" or (
            self.node.op == "MatMul" and self.node.inputs[1] is self.parameter
        )
        if not is_canonical:
            return f"it reads {self.node.inputs[1].name}, expected MatMul(x, W[in, out])"
        if len(self.parameter.outputs) != 1:
            readers = [reader.name for reader in self.parameter.outputs]
            return f"its weight is read by {readers}, expected one node"
        return None if self.rows.dtype in _FLOATS else f"its weight is {self.rows.dtype}"


@dataclass(frozen=True)
class Choice:
    """The globs."""

    include: Sequence[str]
    exclude: Sequence[str]

    def is_left_out(self, module: str) -> bool:
        """Whether it is named to be left out."""
        return any(fnmatchcase(module, pattern) for pattern in self.exclude)

    def takes(self, module: str) -> bool:
        """Whether it is included, and not left out."""
        is_included = any(fnmatchcase(module, pattern) for pattern in self.include)
        return is_included and not self.is_left_out(module)


@dataclass(frozen=True)
class Selection:
    """What is quantized, and what was asked for and is declined."""

    linears: tuple[Matrix, ...]
    tables: tuple[Matrix, ...]
    skips: tuple[Skip, ...]


def _linears(program: Program) -> list[Matrix]:
    found: list[Matrix] = []
    for node in program.graph.nodes:
        if node.op not in ("MatMul", "Gemm", _QUANTIZED_PRODUCT):
            continue
        parameter = through(node.inputs[1], *_BETWEEN)
        weight = program.weights.get(parameter.name)
        if weight is None or len(weight.shape) != 2:
            continue
        sources = tuple(dict.fromkeys(weight.sources()))
        joined = tuple(re.sub(r"\.weight$", "", name) for name in sources)
        modules = joined if len(joined) > 1 else (module_of(node),)
        rows = weight if weight.dtype == "int8" else transpose(weight)
        found.append(Matrix(node, parameter, rows, modules))
    return found


def tables_of(program: Program) -> list[Matrix]:
    """Embeddings: rows of a parameter, chosen by their numbers."""
    found: list[Matrix] = []
    for node in program.graph.nodes:
        weight = program.weights.get(node.inputs[0].name) if node.op == "Gather" else None
        is_matrix = weight is not None and len(weight.shape) == 2 and not is_scale(weight)
        if weight is not None and is_matrix and node.attrs.get("axis", 0) == 0:
            found.append(Matrix(node, node.inputs[0], weight, (module_of(node),)))
    return found


# -- what is chosen


def _check(pattern: str, matrices: Sequence[Matrix], graph: gs.Graph, *, option: str) -> None:
    """Refuse a pattern that selects nothing, with what it does match."""
    modules = [module for matrix in matrices for module in matrix.modules]
    if any(fnmatchcase(module, pattern) for module in modules):
        return
    paths = {module_of(node) for node in graph.nodes}
    parents = {path[: dot.start()] for path in paths for dot in re.finditer(r"\.", path)}
    others = sorted(path for path in (paths | parents) - {""} if fnmatchcase(path, pattern))
    raise PassError(
        f"{option}: '{pattern}' matches {f'{others[0]}, no linear' if others else 'no module'}",
        where=_PASS,
        hint=f"the modules here are {', '.join(sorted(modules)[:4])}, ..." if modules else None,
        code="no-such-module",
    )


def _problem(matrix: Matrix, choice: Choice) -> str | None:
    left_out = [module for module in matrix.modules if not choice.takes(module)]
    if len(matrix.modules) > 1 and left_out:
        taken = next(module for module in matrix.modules if choice.takes(module))
        return f"its weight joins {left_out[0]}, which is left out, and {taken}"
    return matrix.problem()


def _takes_table(table: Matrix, tied: Matrix | None, choice: Choice) -> bool:
    """Whether an embedding becomes int8: of itself, or with the linear that it is tied to."""
    (path,) = table.modules
    if tied is None:
        return choice.takes(path)
    head = tied.modules[0]
    is_wanted = choice.takes(head)
    if choice.is_left_out(path) if is_wanted else choice.takes(path):
        inside, outside = (head, path) if is_wanted else (path, head)
        raise PassError(
            f"{inside} is included and {outside} is not, but they are one tensor, which would be "
            "stored twice",
            where=_PASS,
            hint=f"include both, or leave out both: exclude {inside}, too",
            code="tied-modules",
        )
    return is_wanted


def selected(program: Program, choice: Choice) -> Selection:
    """Every linear and table that is included and not excluded."""
    linears, tables = _linears(program), tables_of(program)
    for option, patterns in (("include", choice.include), ("exclude", choice.exclude)):
        for pattern in patterns:
            _check(pattern, [*linears, *tables], program.graph, option=option)
    chosen = [one for one in linears if any(map(choice.takes, one.modules))]
    problems = {one.node.name: _problem(one, choice) for one in chosen}
    for table in tables:
        tied = next((one for one in linears if one.rows.key == table.rows.key), None)
        if not _takes_table(table, tied, choice):
            continue
        chosen.append(table)
        problem = table.problem()
        if problem is None and tied is not None and problems[tied.node.name] is not None:
            problem = f"{tied.node.name}, which is tied to it, is declined"
        problems[table.node.name] = problem
    sound = [one for one in chosen if problems[one.node.name] is None]
    return Selection(
        tuple(one for one in sound if one.node.op != "Gather"),
        tuple(one for one in sound if one.node.op == "Gather"),
        tuple(Skip(name, problem) for name, problem in problems.items() if problem is not None),
    )


def check_groups(selection: Selection, group: int) -> None:
    """Refuse a size that some module's inputs are no multiple of, with those that all are."""
    matrices = (*selection.linears, *selection.tables)
    wrong = next((one for one in matrices if group and one.inputs % group), None)
    if wrong is None:
        return
    shared = gcd(*(one.inputs for one in matrices))
    sizes = [str(size) for size in range(2, shared + 1) if shared % size == 0]
    raise PassError(
        f"{wrong.modules[0]} has {wrong.inputs} inputs, which groups of {group} do not divide",
        where=_PASS,
        hint=f"sizes that divide the inputs of all that is included: {', '.join(sizes) or 'none'}; "
        "0 for one scale for each output",
        code="bad-group-size",
    )
