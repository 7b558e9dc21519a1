"""`passes:` as a section that changes the default list, or gives a whole one with counts.

    passes:
      drop: [fuse-silu-mul]
      replace: {fold-mask: ./my_mask.py:MyMask}
      set: {insert-strided-slice: {position: last}}
      add: [fuse-qkv, {pass: ./my_pass.py:MyPass, before: fuse-attention, options: {limit: 3}}]
      expect: {insert-strided-slice: 1, fuse-qkv: layers}

`order:` in place of the first four is the whole list, as `passes:` itself may be.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compiler import registry
from compiler.config.explain import dotted, kind_of
from compiler.config.pass_list import PassSpec, read_entry, read_options, read_passes
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.expectations import Expectation, read_expectation
from compiler.yaml_source import Source, YamlPath, YamlValue

_EDITS = ("add", "drop", "replace", "set")
_KEYS = ("order", *_EDITS, "expect")
_ADDED_KEYS = ("pass", "options", "before", "after")
_COUNTS = "write a number, `layers`, or for example `2 * layers + 1`"


@dataclass(frozen=True)
class NamedPass:
    """A pass that is spoken of by its name, and where."""

    name: str
    place: str


@dataclass(frozen=True)
class AddedPass:
    """A pass that joins the list: before or after a named one, or where its declarations allow."""

    spec: PassSpec
    before: NamedPass | None = None
    after: NamedPass | None = None


@dataclass(frozen=True)
class ChangedPass:
    """A pass of the list, by name, and what takes its place; or itself with other options."""

    name: NamedPass
    spec: PassSpec


@dataclass(frozen=True)
class PassSection:
    """What stands under `passes:`.

    Attributes:
        order: The whole list; None for the default one.
        drop: Passes that leave the list.
        replace: Passes whose place another one takes.
        options: Passes whose options change (`set:`).
        add: Passes that join.
        expect: How often passes must fire.
    """

    order: tuple[PassSpec, ...] | None = None
    drop: tuple[NamedPass, ...] = ()
    replace: tuple[ChangedPass, ...] = ()
    options: tuple[ChangedPass, ...] = ()
    add: tuple[AddedPass, ...] = ()
    expect: tuple[tuple[NamedPass, Expectation], ...] = ()


@dataclass
class _Reading:
    source: Source
    folder: Path
    errors: list[CompilerError] = field(default_factory=list[CompilerError])

    def refuse(self, path: YamlPath, message: str, *, hint: str, code: str = "wrong-type") -> None:
        where = self.source.place(path)
        self.errors.append(
            ConfigError(f"{dotted(path)}: {message}", where=where, hint=hint, code=code)
        )

    def kind(self, value: YamlValue, path: YamlPath) -> str:
        return kind_of(value, self.source.spelling(path))


def read_section(
    data: YamlValue, source: Source, *, folder: Path
) -> tuple[PassSection, list[CompilerError]]:
    """The section, with every name and option checked against its pass.

    Args:
        data: What stands at `passes`: nothing, a list, or a section.
        source: The file, for places.
        folder: Folder of the YAML, where the paths of passes in files start.
    """
    if not isinstance(data, dict):
        order, errors = read_passes(data, source, path=("passes",), folder=folder)
        return PassSection(order=order), errors
    reading = _Reading(source, folder)
    _check_keys(data, reading)
    order, errors = read_passes(data.get("order"), source, path=("passes", "order"), folder=folder)
    reading.errors += errors
    section = PassSection(
        order=order,
        drop=tuple(_names(data.get("drop"), ("passes", "drop"), reading)),
        replace=_replaced(data.get("replace"), reading),
        options=_changed(data.get("set"), reading),
        add=_added(data.get("add"), reading),
        expect=_expected(data.get("expect"), reading),
    )
    return section, reading.errors


def _check_keys(data: Mapping[str, YamlValue], reading: _Reading) -> None:
    for key in data:
        if key not in _KEYS:
            near = registry.did_you_mean(key, _KEYS)
            hint = f"did you mean '{near}'?" if near else f"possible: {', '.join(_KEYS)}"
            where = reading.source.key_place(("passes", key))
            message = f"passes: unknown key '{key}'"
            reading.errors.append(ConfigError(message, where=where, hint=hint, code="unknown-key"))
        if key in _EDITS and data.get("order") is not None:
            message = "'order' is the whole list, and leaves nothing to change"
            reading.refuse(
                ("passes", key), message, hint=f"leave out 'order' or '{key}'", code="bad-value"
            )


def _names(value: YamlValue, path: YamlPath, reading: _Reading) -> list[NamedPass]:
    if value is None:
        return []
    if not isinstance(value, list):
        hint = "write a list of names"
        reading.refuse(path, f"expected a list, got {reading.kind(value, path)}", hint=hint)
        return []
    found = [_named(name, (*path, index), reading) for index, name in enumerate(value)]
    return [name for name in found if name is not None]


def _named(value: YamlValue, path: YamlPath, reading: _Reading) -> NamedPass | None:
    where = reading.source.place(path)
    if not isinstance(value, str):
        message = f"expected a pass's name, got {reading.kind(value, path)}"
        reading.refuse(path, message, hint="write its name")
        return None
    return _known(value, where, reading)


def _known(name: str, where: str, reading: _Reading) -> NamedPass | None:
    try:
        registry.load_pass(name, base=reading.folder, where=where)
    except CompilerError as error:
        reading.errors.append(error)
        return None
    return NamedPass(name, where)


def _section(value: YamlValue, key: str, reading: _Reading) -> Mapping[str, YamlValue]:
    if value is None or isinstance(value, dict):
        return value or {}
    path = ("passes", key)
    message = f"expected a section, got {reading.kind(value, path)}"
    reading.refuse(path, message, hint="write `name: ...` lines")
    return {}


def _replaced(value: YamlValue, reading: _Reading) -> tuple[ChangedPass, ...]:
    found: list[ChangedPass] = []
    for name, entry in _section(value, "replace", reading).items():
        path = ("passes", "replace", name)
        old = _known(name, reading.source.key_place(path), reading)
        spec, errors = read_entry(entry, reading.source, path, folder=reading.folder)
        reading.errors += errors
        if old is not None and spec is not None:
            found.append(ChangedPass(old, spec))
    return tuple(found)


def _changed(value: YamlValue, reading: _Reading) -> tuple[ChangedPass, ...]:
    found: list[ChangedPass] = []
    for name, options in _section(value, "set", reading).items():
        path = ("passes", "set", name)
        named = _known(name, reading.source.key_place(path), reading)
        if named is None:
            continue
        spec, errors = read_options(
            name, options, reading.source, path, folder=reading.folder, is_whole=False
        )
        reading.errors += errors
        if spec is not None:
            found.append(ChangedPass(named, spec))
    return tuple(found)


def _added(value: YamlValue, reading: _Reading) -> tuple[AddedPass, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        path = ("passes", "add")
        hint = "write `- name` lines"
        reading.refuse(path, f"expected a list, got {reading.kind(value, path)}", hint=hint)
        return ()
    found = [_added_pass(entry, ("passes", "add", i), reading) for i, entry in enumerate(value)]
    return tuple(one for one in found if one is not None)


def _added_pass(entry: YamlValue, path: YamlPath, reading: _Reading) -> AddedPass | None:
    if not isinstance(entry, dict) or "pass" not in entry:
        spec, errors = read_entry(entry, reading.source, path, folder=reading.folder)
        reading.errors += errors
        return None if spec is None else AddedPass(spec)
    unknown = next((key for key in entry if key not in _ADDED_KEYS), None)
    if unknown is not None or ("before" in entry and "after" in entry):
        said = f"unknown key '{unknown}'" if unknown else "'before' and 'after' together"
        hint = f"possible: {', '.join(_ADDED_KEYS)}, with one of the last two"
        reading.refuse(path, said, hint=hint, code="unknown-key" if unknown else "bad-value")
        return None
    name = entry["pass"]
    if not isinstance(name, str):
        reading.refuse((*path, "pass"), "expected a pass's name", hint="write its name")
        return None
    spec, errors = read_options(
        name, entry.get("options"), reading.source, (*path, "options"), folder=reading.folder
    )
    reading.errors += errors
    places = [
        _named(entry[key], (*path, key), reading) if key in entry else None
        for key in ("before", "after")
    ]
    return None if spec is None else AddedPass(spec, *places)


def _expected(value: YamlValue, reading: _Reading) -> tuple[tuple[NamedPass, Expectation], ...]:
    found: list[tuple[NamedPass, Expectation]] = []
    for name, count in _section(value, "expect", reading).items():
        path = ("passes", "expect", name)
        named = _known(name, reading.source.key_place(path), reading)
        if not isinstance(count, int | str) or isinstance(count, bool):
            message = f"expected a count, got {reading.kind(count, path)}"
            reading.refuse(path, message, hint=_COUNTS)
            continue
        try:
            expectation = read_expectation(count)
        except ValueError as error:
            reading.refuse(path, str(error), hint=_COUNTS, code="bad-value")
            continue
        if named is not None:
            found.append((named, expectation))
    return tuple(found)
