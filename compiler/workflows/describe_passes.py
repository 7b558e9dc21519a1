"""What passes there are, and what one of them does: declarations, and a live example."""

import dataclasses
import inspect
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.contracts.errors import CompilerError
from compiler.contracts.pass_base import Pass, Skip
from compiler.contracts.program import Phase
from compiler.pass_kit.earlier_passes import plainest


@dataclass(frozen=True)
class OptionSummary:
    """A field of a pass: name, type and default as text; None where it must be given."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class PassSummary:
    """One registered pass.

    Attributes:
        name: Registered name.
        phases: Where it runs.
        options: Its fields.
        contract: What it promises, with default options.
        owner: The distribution that brings it.
        summary: First line of its class's documentation.
        problem: Why it cannot be loaded; then the rest is empty.
    """

    name: str
    phases: tuple[Phase, ...]
    options: tuple[OptionSummary, ...]
    contract: str
    owner: str
    summary: str
    problem: str | None = None


@dataclass(frozen=True)
class PassExplanation:
    """One pass in full.

    Attributes:
        name: Its name.
        source: The file that it is written in.
        about: Documentation of its module, or of its class where the module has none.
        phases: Where it runs.
        options: Its fields.
        contract: What it promises, with the options given.
        changes_signature: Whether inputs or outputs of the graph change.
        requires: Passes that must stand earlier.
        after: Passes that must stand earlier, if they are there.
        before: Registered passes that name it in one of these two.
        example_before: A part of a generated block; None where no block has anything for it.
        example_after: What it makes of that part.
        skips: What it declined on generated blocks, a node for each reason.
    """

    name: str
    source: str
    about: str
    phases: tuple[Phase, ...]
    options: tuple[OptionSummary, ...]
    contract: str
    changes_signature: bool
    requires: tuple[str, ...]
    after: tuple[str, ...]
    before: tuple[str, ...]
    example_before: str | None
    example_after: str | None
    skips: tuple[Skip, ...]


def list_passes() -> tuple[PassSummary, ...]:
    """Every registered pass, by name; one that cannot be loaded says why."""
    return tuple(_summary(name) for name in registry.passes())


def explain_pass(rewriting: Pass) -> PassExplanation:
    """Everything about one pass; its example and what it declines come from running it now."""
    from compiler.pass_kit.example import example_of, skips_of
    from compiler.pass_kit.program_text import text_of

    kind = type(rewriting)
    example = example_of(rewriting)
    return PassExplanation(
        name=rewriting.name,
        source=_source(kind),
        about=_about(kind),
        phases=rewriting.phases,
        options=_options(kind),
        contract=str(rewriting.promise()),
        changes_signature=rewriting.changes_signature,
        requires=rewriting.required(),
        after=rewriting.after,
        before=_named_by(rewriting.name),
        example_before=None if example is None else text_of(example.before),
        example_after=None if example is None else text_of(example.after),
        skips=skips_of(rewriting),
    )


def _summary(name: str) -> PassSummary:
    owner = registry.pass_owner(name)
    try:
        kind = registry.load_pass(name)
    except CompilerError as error:
        return PassSummary(name, (), (), "", owner, "", problem=error.message)
    return PassSummary(
        name=name,
        phases=kind.phases,
        options=_options(kind),
        contract=_contract(kind),
        owner=owner,
        summary=_first_line(inspect.getdoc(kind)),
    )


def _contract(kind: type[Pass]) -> str:
    """With the plainest options; where one has to be given, as the class declares it."""
    one = plainest(kind)
    return str(kind.contract if one is None else one.promise())


def _options(kind: type[Pass]) -> tuple[OptionSummary, ...]:
    types_of = typing.get_type_hints(kind)
    return tuple(
        OptionSummary(field.name, _type_text(types_of[field.name]), _default_text(field))
        for field in dataclasses.fields(kind)
        if field.init
    )


def _type_text(annotation: object) -> str:
    """`last | last_valid` for a Literal, `tuple[str, ...]` as it is written."""
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_type_text(one) for one in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default_text(field: "dataclasses.Field[object]") -> str | None:
    if field.default is not dataclasses.MISSING:
        return str(field.default)
    factory = field.default_factory
    return None if factory is dataclasses.MISSING else str(factory())


def _about(kind: type[Pass]) -> str:
    module = inspect.getmodule(kind)
    return (inspect.getdoc(module) if module is not None else None) or inspect.getdoc(kind) or ""


def _source(kind: type[Pass]) -> str:
    """Relative to the current folder where it lies in it; else the module's name."""
    path = Path(inspect.getfile(kind))
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else kind.__module__


def _first_line(documentation: str | None) -> str:
    return re.sub(r"\s+", " ", (documentation or "").split("\n\n")[0])


def _named_by(name: str) -> tuple[str, ...]:
    """Registered passes that must stand after the one called `name`."""
    found: list[str] = []
    for other in registry.passes():
        try:
            kind = registry.load_pass(other)
        except CompilerError:  # `passes list` says what is wrong with it
            continue
        one = plainest(kind)
        required = kind.requires if one is None else one.required()
        found += [other] if name in (*required, *kind.after) else []
    return tuple(found)
