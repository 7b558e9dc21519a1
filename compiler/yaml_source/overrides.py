"""`section.key=value` items over a parsed file, as `--set` gives them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from compiler.contracts.errors import ConfigError
from compiler.yaml_source.reading import Reading, parse
from compiler.yaml_source.source import Mark, Source, YamlPath, YamlValue

_EXAMPLE = "write for example --set backend.dtype=bf16"


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """A copy of `source` with `section.key=value` items over it; later ones win.

    Values are YAML. Keys and sections are created; a number in the path is an entry of a list that
    exists (`passes.0`). What is malformed becomes an error of the result, placed at its option.
    """
    for override in overrides:
        try:
            source = _override(source, override)
        except ConfigError as error:
            source = replace(source, errors=(*source.errors, error))
    return source


def override_value(source: Source, path: YamlPath, value: YamlValue, *, label: str) -> Source:
    """A copy of `source` with one value replaced; its place is `label`, the option that gave it."""
    spelling = value if isinstance(value, str) else None
    return _stored(source, path, value, marks={path: Mark(label, label, spelling)}, label=label)


def _override(source: Source, override: str) -> Source:
    name, separator, text = override.partition("=")
    label = f"--set {name}"
    parts = name.split(".")
    if not separator:
        message = f"'{override}' is not section.key=value"
        raise ConfigError(message, where=label, hint=_EXAMPLE, code="bad-override")
    if any(part.strip() != part or not part for part in parts):
        message = f"'{name}' is not a path of keys with dots between them"
        raise ConfigError(message, where=label, hint=_EXAMPLE, code="bad-override")
    if not text.strip():
        hint = f"write --set {name}=null to leave the key out"
        message = f"'{name}' is given no value"
        raise ConfigError(message, where=label, hint=hint, code="bad-override")
    path = tuple(int(part) if part.isdecimal() else part for part in parts)
    value = parse(text, Reading(label, base=path, is_file=False))
    if value.errors:
        return replace(source, errors=source.errors + value.errors)
    return _stored(source, path, value.data, marks=value.marks, label=label)


def _stored(
    source: Source,
    path: YamlPath,
    value: YamlValue,
    *,
    marks: Mapping[YamlPath, Mark],
    label: str,
) -> Source:
    if not isinstance(source.data, dict):
        return source
    kept = {key: mark for key, mark in source.marks.items() if key[: len(path)] != path}
    data = copy.deepcopy(source.data)
    spot: YamlValue = data
    for depth, part in enumerate(path[:-1], start=1):
        spot = _step(spot, part, path[: depth - 1], label)
        kept.setdefault(path[:depth], Mark(label, label))
    _step(spot, path[-1], path[:-1], label)
    if isinstance(spot, dict):
        spot[str(path[-1])] = value
    elif isinstance(spot, list):
        spot[int(path[-1])] = value
    return replace(source, data=data, marks={**kept, **marks})


def _step(spot: YamlValue, part: str | int, here: YamlPath, label: str) -> YamlValue:
    """The value at `part` of `spot`, a new section where there is none."""
    name = ".".join(map(str, here))
    if isinstance(spot, dict):
        if spot.get(str(part)) is None:
            spot[str(part)] = {}
        return spot[str(part)]
    if not isinstance(spot, list):
        message = f"'{name}' is a value, not a section: '{part}' cannot be set in it"
        raise ConfigError(message, where=label, hint=f"set '{name}' itself", code="bad-override")
    if not isinstance(part, int) or part >= len(spot):
        hint = f"set the whole list: --set '{name}=[...]'"
        message = f"'{name}' is a list of {len(spot)} and has no entry '{part}'"
        raise ConfigError(message, where=label, hint=hint, code="bad-override")
    return spot[part]
