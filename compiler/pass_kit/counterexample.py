"""A failing case as a text file that reproduces it: ONNX text, with what ONNX has no place for.

    # `passes test` on my-pass: promises exact, but with 0 past and 4 valid tokens ...
    # again: python -m compiler passes test ./my_pass.py:MyPass --reproduce counterexample.onnx.txt
    <ir_version: 10, opset_import: ["" : 20], metadata_props: ["graphlower.case": "{...}"]>
    main (...) => (...) { ... }

The text is what `onnx.parser` reads. The property holds lengths, seeds and the expressions of the
parameters as JSON: random values are made anew from names and seeds.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.parser
import onnx.printer
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ValidationError

from compiler.contracts.errors import ConfigError
from compiler.contracts.program import LogitsOf, Phase, Program, quiet_graphsurgeon
from compiler.contracts.weights import StoredTensor, Weight
from compiler.numerics.feeds import Lengths
from compiler.pass_kit.cases import Case
from compiler.registry import load_pass

_PROPERTY = "graphlower.case"


class _PlainWeight(BaseModel):
    """An expression over the checkpoint's tensors."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    operands: list["_PlainWeight"] = []
    attributes: tuple[str | int, ...] = ()


class _Facts(BaseModel):
    """What a case is besides its graph."""

    phase: Phase
    tokens: int
    context: int
    layers: int
    logits_of: LogitsOf
    aliases: dict[str, str]
    weights: dict[str, _PlainWeight]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    lengths: list[tuple[int, int]]
    vocabulary: int
    seed: int
    guards: list[str]


def case_text(case: Case, *, remarks: Sequence[str]) -> str:
    """The case as text; `remarks` become comment lines at its head."""
    model = case.program.model()
    facts = _facts(case).model_dump_json(exclude_defaults=True)
    onnx.helper.set_model_props(model, {_PROPERTY: facts})
    head = "".join(f"# {line}\n" for remark in remarks for line in remark.splitlines())
    return f"{head}{onnx.printer.to_text(model)}\n"


def read_case(path: Path) -> Case:
    """The case of a file that `case_text` wrote.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        model = onnx.parser.parse_model(path.read_text(encoding="utf-8"))
        stored = {entry.key: entry.value for entry in model.metadata_props}
        return _case(model, _Facts.model_validate_json(stored.get(_PROPERTY, "")))
    except OSError as e:
        raise _unreadable(path, f"cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise _unreadable(path, "is not UTF-8") from e
    except onnx.parser.ParseError as e:
        raise _unreadable(path, f"is not ONNX text: {' '.join(str(e).split())}") from e
    except ValidationError as e:
        wrong = e.errors()[0]["msg"]
        raise _unreadable(path, f"has no property {_PROPERTY!r} that can be read: {wrong}") from e


def _unreadable(path: Path, message: str) -> ConfigError:
    hint = "give a file that `passes test` wrote"
    return ConfigError(message, where=str(path), hint=hint, code="bad-counterexample")


def _facts(case: Case) -> _Facts:
    program = case.program
    return _Facts(
        phase=program.phase,
        tokens=program.tokens,
        context=program.context,
        layers=program.layers,
        logits_of=program.logits_of,
        aliases=program.aliases,
        weights={name: _plain(weight) for name, weight in program.weights.items()},
        tensors={name: (t.dtype, t.shape) for name, t in sorted(case.tensors.items())},
        lengths=[(lengths.past, lengths.valid) for lengths in case.lengths],
        vocabulary=case.vocabulary,
        seed=case.seed,
        guards=[guard.name for guard in case.guards],
    )


def _case(model: onnx.ModelProto, facts: _Facts) -> Case:
    quiet_graphsurgeon()
    functions = {function.name: function for function in model.functions}
    del model.functions[:]
    tensors = {
        name: StoredTensor(Path(), 0, shape, dtype)
        for name, (dtype, shape) in facts.tensors.items()
    }
    program = Program(
        phase=facts.phase,
        graph=gs.import_onnx(model),
        tokens=facts.tokens,
        context=facts.context,
        layers=facts.layers,
        weights={name: _weight(plain) for name, plain in facts.weights.items()},
        checkpoint_tensors={name: tensor.shape for name, tensor in tensors.items()},
        aliases=facts.aliases,
        logits_of=facts.logits_of,
        functions=functions,
    )
    return Case(
        program=program,
        tensors=tensors,
        lengths=tuple(Lengths(past, valid) for past, valid in facts.lengths),
        vocabulary=facts.vocabulary,
        seed=facts.seed,
        guards=tuple(load_pass(name)() for name in facts.guards),
    )


def _plain(weight: Weight) -> _PlainWeight:
    return _PlainWeight(
        op=weight.op,
        shape=weight.shape,
        dtype=weight.dtype,
        operands=[_plain(operand) for operand in weight.operands],
        attributes=weight.attributes,
    )


def _weight(plain: _PlainWeight) -> Weight:
    operands = tuple(_weight(operand) for operand in plain.operands)
    return Weight(plain.op, plain.shape, plain.dtype, operands, plain.attributes)
