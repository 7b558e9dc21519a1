"""Tile programs as text, read and written; docs/vacc-tiles.md describes it line by line.

`parse_tiles(tile_text(program)) == program`, and the emulator runs what was parsed, nothing else.
"""

import re
from collections.abc import Iterator, Sequence

from compiler.contracts.errors import TargetError
from targets.vacc.tile_program import (
    COLLECTIVES,
    ITEM_BYTES,
    ROLES,
    Argument,
    Collective,
    Compute,
    Kernel,
    Load,
    Loop,
    Meet,
    Role,
    Run,
    Scalar,
    Span,
    Statement,
    Step,
    Store,
    Sum,
    Tensor,
    TileProgram,
    View,
)

VERSION = "vacc-tiles 1"

_NAME = r"[A-Za-z_][\w.]*"
_TYPE = r"(?:f16|f32|i8|i64)\[[\d,]*\]"
_REGION = r"\[[^\]]*\]"
_DECLARED = re.compile(rf"({_TYPE}) ({_NAME})")
_KERNEL = re.compile(rf"kernel ({_NAME}) (\w+) \((.*)\) -> \((.*)\)")
_SCALAR = re.compile(rf"scalar ({_NAME}) = ({_NAME})")
_LOOP = re.compile(rf"for ({_NAME}) in (\S+):(\S+) step (\d+)")
_LOAD = re.compile(rf"load ({_NAME}) = ({_NAME})({_REGION})(?: rows ({_NAME}))?")
_STORE = re.compile(rf"store ({_NAME})({_REGION}) = ({_NAME})")
_COMPUTE = re.compile(rf"(\w+) ({_NAME}(?:, {_NAME})*) =((?: {_NAME},?)*)((?: \w+=\S+)*)")
_RUN = re.compile(rf"run ({_NAME}) ({_NAME}) \((.*)\) -> \((.*)\)")
_MEET = re.compile(
    rf"({'|'.join(COLLECTIVES)}) ({_NAME}) ways=(\d+) \(({_NAME})\) -> \(({_NAME})\)"
)
_VIEW = re.compile(rf"view ({_TYPE}) ({_NAME}) = ({_NAME})")
_TERM = re.compile(rf"(?:(\d+)\*)?({_NAME})|(\d+)")


def tile_text(program: TileProgram) -> str:
    """The text, one statement a line, loops by indentation."""
    lines = [VERSION, f"onchip {program.onchip_bytes}"]
    for kernel in program.kernels:
        lines += ["", *_kernel_lines(kernel)]
    lines += ["", f"program {program.name}"]
    lines += [f"  {given.role} {_declared(given.tensor)}" for given in program.arguments]
    lines += [f"  mem {_declared(tensor)}" for tensor in program.tensors]
    lines += [f"  {_step_line(step)}" for step in program.steps]
    lines.append(f"  return {', '.join(program.results)}")
    return "\n".join(lines) + "\n"


def _kernel_lines(kernel: Kernel) -> Iterator[str]:
    taken, left = (
        ", ".join(map(_declared, kernel.inputs)),
        ", ".join(map(_declared, kernel.outputs)),
    )
    yield f"kernel {kernel.name} {kernel.composite} ({taken}) -> ({left})"
    for buffer in kernel.buffers:
        yield f"  buffer {_declared(buffer)}"
    yield from _body_lines(kernel.body, "  ")


def _body_lines(body: Sequence[Statement], indent: str) -> Iterator[str]:
    for one in body:
        match one:
            case Scalar(name, source):
                yield f"{indent}scalar {name} = {source}"
            case Load(buffer, source, region, rows):
                yield f"{indent}load {buffer} = {source}{_region(region)}" + (
                    f" rows {rows}" if rows else ""
                )
            case Store(target, region, buffer):
                yield f"{indent}store {target}{_region(region)} = {buffer}"
            case Compute(op, outputs, inputs, attributes):
                given = "".join(f" {key}={_number(value)}" for key, value in attributes)
                taken = f" {', '.join(inputs)}" if inputs else ""
                yield f"{indent}{op} {', '.join(outputs)} ={taken}{given}"
            case Loop(variable, start, stop, step, inner):
                yield f"{indent}for {variable} in {start}:{stop} step {step}"
                yield from _body_lines(inner, f"{indent}  ")


def _declared(tensor: Tensor) -> str:
    return f"{tensor.type_text} {tensor.name}"


def _region(region: Sequence[Span]) -> str:
    return f"[{', '.join(map(str, region))}]"


def _number(value: Sum | float) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _step_line(step: Step) -> str:
    match step:
        case View(tensor, source):
            return f"view {_declared(tensor)} = {source}"
        case Meet(collective, module, ways, argument, result):
            return f"{collective} {module} ways={ways} ({argument}) -> ({result})"
        case Run(kernel, module, arguments, results):
            return f"run {kernel} {module} ({', '.join(arguments)}) -> ({', '.join(results)})"


def parse_tiles(text: str, *, where: str = "tiles") -> TileProgram:
    """The program that a text describes.

    Args:
        text: As `tile_text` writes it.
        where: The file, for errors.

    Raises:
        TargetError: A line is none of the format's; with file and line.
    """
    lines = [(number, line.rstrip()) for number, line in enumerate(text.splitlines(), 1)]
    return _Reading([(n, line) for n, line in lines if line], where).program()


def parse_kernel(text: str, *, where: str = "kernel") -> Kernel:
    """One kernel of the format.

    Raises:
        TargetError: A line is none of the format's.
    """
    lines = [(number, line.rstrip()) for number, line in enumerate(text.splitlines(), 1)]
    return _Reading([(n, line) for n, line in lines if line], where).kernel()


class _Reading:
    def __init__(self, lines: list[tuple[int, str]], where: str) -> None:
        self.lines, self.where, self.next = lines, where, 0

    def program(self) -> TileProgram:
        if self.take() != VERSION:
            raise self.error(f"the first line is not '{VERSION}'")
        onchip = self.take()
        if not re.fullmatch(r"onchip \d+", onchip):
            raise self.error("the second line is not `onchip BYTES`")
        kernels: list[Kernel] = []
        while self.peek().startswith("kernel "):
            kernels.append(self.kernel())
        name = re.fullmatch(rf"program ({_NAME})", self.take())
        if name is None:
            raise self.error("expected `kernel` or `program NAME`")
        arguments: list[Argument] = []
        while (role := self.role()) is not None:
            arguments += [Argument(role, tensor) for tensor in self.declared(role)]
        tensors = self.declared("mem")
        steps: list[Step] = []
        while not self.peek().startswith("  return"):
            steps.append(self.step())
        results = _names(self.take().removeprefix("  return"))
        if self.next != len(self.lines):
            raise self.error("expected nothing after `return`", at=self.next)
        return TileProgram(
            name=name[1],
            onchip_bytes=int(onchip.split()[1]),
            kernels=tuple(kernels),
            arguments=tuple(arguments),
            tensors=tensors,
            steps=tuple(steps),
            results=results,
        )

    def role(self) -> Role | None:
        """What the next line declares of the program's arguments."""
        return next((role for role in ROLES if self.peek().startswith(f"  {role} ")), None)

    def peek(self) -> str:
        return self.lines[self.next][1] if self.next < len(self.lines) else ""

    def take(self) -> str:
        if self.next == len(self.lines):
            raise TargetError("the tile program ends early", where=self.where)
        self.next += 1
        return self.lines[self.next - 1][1]

    def error(self, message: str, *, at: int | None = None) -> TargetError:
        number, line = self.lines[self.next - 1 if at is None else at]
        return TargetError(f"{message}: {line.strip()}", where=f"{self.where}:{number}")

    def declared(self, word: str) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        while self.peek().startswith(f"  {word} "):
            line = self.take()
            declared = _DECLARED.fullmatch(line.removeprefix(f"  {word} "))
            if declared is None:
                raise self.error(f"expected `{word} TYPE NAME`")
            found.append(_tensor(declared[1], declared[2]))
        return tuple(found)

    def kernel(self) -> Kernel:
        head = _KERNEL.fullmatch(self.take())
        if head is None:
            raise self.error("expected `kernel NAME COMPOSITE (..) -> (..)`")
        inputs, outputs = (
            tuple(_tensor(*one) for one in _DECLARED.findall(text)) for text in (head[3], head[4])
        )
        buffers = self.declared("buffer")
        return Kernel(head[1], head[2], inputs, outputs, buffers, self.body("  "))

    def body(self, indent: str) -> tuple[Statement, ...]:
        found: list[Statement] = []
        while self.peek().startswith(indent):
            line = self.take()
            if line[len(indent)] == " ":
                raise self.error("this line is indented without a loop")
            found.append(self.statement(line[len(indent) :], indent))
        return tuple(found)

    def statement(self, line: str, indent: str) -> Statement:
        if m := _LOOP.fullmatch(line):
            start, stop = self.sum(m[2]), self.sum(m[3])
            return Loop(m[1], start, stop, int(m[4]), self.body(f"{indent}  "))
        if m := _SCALAR.fullmatch(line):
            return Scalar(m[1], m[2])
        if m := _LOAD.fullmatch(line):
            return Load(m[1], m[2], self.region(m[3]), m[4] or "")
        if m := _STORE.fullmatch(line):
            return Store(m[1], self.region(m[2]), m[3])
        if m := _COMPUTE.fullmatch(line):
            given = (pair.split("=") for pair in m[4].split())
            attributes = tuple((key, self.number(value)) for key, value in given)
            return Compute(m[1], _names(m[2]), _names(m[3]), attributes)
        raise self.error("this is no statement of a tile program")

    def region(self, text: str) -> tuple[Span, ...]:
        spans: list[Span] = []
        for part in _split(text[1:-1]):
            start, found, count = part.partition(":+")
            if not found:
                raise self.error("a region's axis is `start:+count`")
            spans.append(Span(self.sum(start), self.sum(count)))
        return tuple(spans)

    def number(self, text: str) -> Sum | float:
        is_float = re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", text) and not text.isdigit()
        return float(text) if is_float else self.sum(text)

    def sum(self, text: str) -> Sum:
        constant, terms = 0, []
        for part in text.split("+"):
            m = _TERM.fullmatch(part)
            if m is None:
                raise self.error(f"'{text}' is no sum of numbers and names")
            if m[3]:
                constant += int(m[3])
            else:
                terms.append((int(m[1] or 1), m[2]))
        return Sum(constant, tuple(terms))

    def step(self) -> Step:
        line = self.take().removeprefix("  ")
        if m := _VIEW.fullmatch(line):
            return View(_tensor(m[1], m[2]), m[3])
        if m := _RUN.fullmatch(line):
            return Run(m[1], m[2], _names(m[3]), _names(m[4]))
        if m := _MEET.fullmatch(line):
            collective: Collective = "all_reduce" if m[1] == "all_reduce" else "all_gather"
            return Meet(collective, m[2], int(m[3]), m[4], m[5])
        raise self.error("expected `run`, `view`, a collective or `return`")


def _tensor(type_text: str, name: str) -> Tensor:
    dtype, _, axes = type_text[:-1].partition("[")
    assert dtype in ITEM_BYTES, f"the expression lets no {dtype} pass"
    return Tensor(name, dtype, tuple(int(axis) for axis in axes.split(",") if axis))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _names(text: str) -> tuple[str, ...]:
    return tuple(_split(text))
