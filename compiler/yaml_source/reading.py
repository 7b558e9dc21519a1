"""Reading YAML with places: PyYAML's SafeLoader (YAML 1.1), without its silence.

An equal key twice, a key that is not text, and a number that means something else than it shows
(`012` is 10, `1:30` is 90) are errors. Aliases and merge keys work; what they expand to is bounded.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import yaml
from yaml.reader import ReaderError

from compiler.contracts.errors import ConfigError
from compiler.yaml_source.source import Mark, Source, YamlPath, YamlValue

MAX_BYTES = 1 << 20
# Values after aliases are expanded; a configuration has dozens.
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp"))
_KINDS = {"bool": "boolean", "int": "number", "float": "number", "timestamp": "date"}
# What YAML 1.1 reads as octal or in base 60, and nobody means so.
_SURPRISING = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")

_Entry: TypeAlias = tuple[yaml.Node, yaml.Node]


@dataclass
class Reading:
    """One reading of one text: what it is called, and what was found in it so far.

    Attributes:
        label: The file, or the option that gave the text.
        base: Path of the text's root in the whole tree.
        is_file: Whether places have lines and columns.
        marks: Path -> where it stands.
        errors: What is wrong, in order.
    """

    label: str
    base: YamlPath = ()
    is_file: bool = True
    marks: dict[YamlPath, Mark] = field(default_factory=dict)
    errors: list[ConfigError] = field(default_factory=list)
    # Nodes being read, to notice one inside itself; nodes read, to report a shared fault once.
    open_nodes: set[int] = field(default_factory=set)
    read_nodes: set[int] = field(default_factory=set)
    values: int = 0
    constructor: yaml.SafeLoader = field(default_factory=lambda: yaml.SafeLoader(""))

    def at(self, mark: yaml.Mark | None) -> str:
        """The place of a parser's mark."""
        if mark is None or not self.is_file:
            return self.label
        return f"{self.label}:{mark.line + 1}:{mark.column + 1}"

    def refuse(self, node: yaml.Node, message: str, *, hint: str, code: str) -> None:
        """Note an error in `node`, once however often it is aliased."""
        if id(node) not in self.read_nodes:
            where = self.at(node.start_mark)
            self.errors.append(ConfigError(message, where=where, hint=hint, code=code))
        self.read_nodes.add(id(node))


def load_yaml(path: Path) -> Source:
    """Read one YAML file. Never raises for what the file is or holds: see `Source.errors`."""
    reading = Reading(str(path))
    try:
        return parse(file_text(path), reading)
    except ConfigError as error:
        return Source(reading.label, None, (*reading.errors, error))


def parse(text: str, reading: Reading) -> Source:
    """Parse one document.

    Raises:
        ConfigError: The text is not YAML, or too much of it.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            message = f"the {'file' if reading.is_file else 'value'} is empty"
            hint = "it needs at least `frontend` and `backend`" if reading.is_file else "quote it"
            raise ConfigError(message, where=reading.label, hint=hint, code="empty-file")
        data = _value(node, reading.base, node, reading)
    except ReaderError as e:
        raise _unreadable_character(text, e, reading) from e
    except yaml.MarkedYAMLError as e:
        raise _syntax_error(e, reading) from e
    except RecursionError as e:
        message = "not valid here: nested too deeply"
        raise ConfigError(message, where=reading.label, code="yaml-syntax") from e
    return Source(reading.label, data, tuple(reading.errors), reading.marks)


def file_text(path: Path) -> str:
    """The file's text.

    Raises:
        ConfigError: There is no such file, it cannot be read, is too long or is not UTF-8.
    """
    try:
        if path.is_dir():
            raise _unreadable(path, "is a folder", hint="name the YAML file in it")
        if not path.exists():
            raise _unreadable(path, "there is no such file", hint="check the path")
        if not path.is_file():
            raise _unreadable(path, "is not a regular file", hint="name a YAML file")
        if path.stat().st_size > MAX_BYTES:
            message = f"is {path.stat().st_size} bytes long, and at most {MAX_BYTES} are read"
            raise _unreadable(path, message, hint="is this the YAML file?")
        content = path.read_bytes()
    except OSError as e:
        hint = "check its permissions"
        raise _unreadable(path, f"cannot be read: {e.strerror}", hint=hint) from e
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        message = f"is not UTF-8: byte 0x{content[e.start]:02x} in line {line}"
        raise _unreadable(path, message, hint="save the file as UTF-8") from e


def _unreadable(path: Path, message: str, *, hint: str) -> ConfigError:
    return ConfigError(message, where=str(path), hint=hint, code="unreadable-file")


def _value(node: yaml.Node, path: YamlPath, key: yaml.Node, reading: Reading) -> YamlValue:
    """The plain value of a node; marks and errors go to `reading`."""
    reading.values += 1
    if reading.values > MAX_VALUES:
        raise ConfigError(
            f"there are more than {MAX_VALUES} values once aliases are expanded",
            where=reading.at(node.start_mark),
            hint="write out the few values that are meant",
            code="too-large",
        )
    is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    spelling = node.value if isinstance(node, yaml.ScalarNode) else None
    key_place = reading.at(key.start_mark)
    place = key_place if is_block else reading.at(node.start_mark)
    reading.marks[path] = Mark(place, key_place, spelling)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, reading)
    if id(node) in reading.open_nodes:
        hint = "write the value out"
        reading.refuse(node, "an alias holds itself", hint=hint, code="recursive-alias")
        return None
    reading.open_nodes.add(id(node))
    data = _collection(node, path, reading)
    reading.open_nodes.remove(id(node))
    return data


def _collection(node: yaml.Node, path: YamlPath, reading: Reading) -> YamlValue:
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        entries = dict(_entries(node, reading))
        return {
            name: _value(child, (*path, name), key, reading)
            for name, (key, child) in entries.items()
        }
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [
            _value(child, (*path, index), child, reading) for index, child in enumerate(node.value)
        ]
    return _refuse_tag(node, reading)


def _scalar(node: yaml.ScalarNode, reading: Reading) -> YamlValue:
    if node.tag not in _SCALARS:
        return _refuse_tag(node, reading)
    try:
        value = reading.constructor.construct_object(node)
    except (ValueError, LookupError, OverflowError, AttributeError):
        text = node.value if len(node.value) <= 40 else f"{node.value[:40]}..."
        message = f"'{text}' is not a {_kind(node)} that can be read"
        reading.refuse(node, message, hint="quote it if it is text", code="bad-value")
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not math.isfinite(value):
        message = f"{node.value} is not a finite number"
        reading.refuse(node, message, hint="write a finite number", code="bad-value")
        return None
    if is_number and node.style is None and _SURPRISING.fullmatch(node.value):
        hint = f'write {value} for the number, or "{node.value}" for the text'
        message = f"YAML reads {node.value} as the number {value}"
        reading.refuse(node, message, hint=hint, code="surprising-number")
    return value


def _entries(node: yaml.MappingNode, reading: Reading) -> Iterator[tuple[str, _Entry]]:
    """Name -> (key, value) of a mapping; merged entries come first, so that its own ones win."""
    own: dict[str, _Entry] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            yield from _merged(value, reading)
        elif key.tag != _TAG + "str":
            _refuse_key(key, reading)
        elif key.value in own:
            first = own[key.value][0].start_mark
            there = f" in line {first.line + 1}" if reading.is_file else ""
            message = f"the key '{key.value}' stands here again, first{there}"
            reading.refuse(key, message, hint="keep one of the two", code="duplicate-key")
        else:
            own[key.value] = (key, value)
    yield from own.items()


_MERGE = _TAG + "merge"


def _merged(value: yaml.Node, reading: Reading) -> Iterator[tuple[str, _Entry]]:
    """The entries that `<<` brings in; of several mappings the first wins."""
    parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
    for part in reversed(parts):
        if not isinstance(part, yaml.MappingNode) or id(part) in reading.open_nodes:
            message = "'<<' takes a mapping, or a list of mappings, other than the one it stands in"
            reading.refuse(part, message, hint="name an anchor: `<<: *name`", code="wrong-type")
            continue
        reading.open_nodes.add(id(part))
        yield from _entries(part, reading)
        reading.open_nodes.remove(id(part))


def _kind(node: yaml.Node) -> str:
    kind = node.tag.removeprefix(_TAG)
    return _KINDS.get(kind, kind)


def _refuse_key(key: yaml.Node, reading: Reading) -> None:
    if not isinstance(key, yaml.ScalarNode):
        message = "a list or a mapping stands as a key"
        reading.refuse(key, message, hint="keys are text", code="bad-key")
        return
    message = f"YAML reads the key '{key.value}' as a {_kind(key)}, and keys are text"
    reading.refuse(key, message, hint=f'quote it: "{key.value}"', code="bad-key")


def _refuse_tag(node: yaml.Node, reading: Reading) -> None:
    tag = node.tag.replace(_TAG, "!!")
    message = f"the tag {tag} is not read here"
    reading.refuse(node, message, hint="plain YAML only: remove the tag", code="bad-value")


def _syntax_error(error: yaml.MarkedYAMLError, reading: Reading) -> ConfigError:
    problem = error.problem or "cannot be parsed"
    context = f" {error.context}" if error.context else ""
    where = reading.at(error.problem_mark or error.context_mark)
    hint = next((hint for part, hint in _SYNTAX_HINTS if part in f"{context} {problem}"), None)
    message = f"not valid YAML{context}: {problem}"
    return ConfigError(message, where=where, hint=hint, code="yaml-syntax")


_SYNTAX_HINTS = (
    ("'\\t'", "indent with spaces: YAML takes no tabs"),
    ("mapping values are not allowed", "check the indentation, and quote text that holds ': '"),
    ("expected a single document", "keep one document: remove the '---' between them"),
    ("undefined alias", "define it above, with '&' in place of '*'"),
    ("expected <block end>", "check the indentation of this line and of the one above"),
    ("could not find expected ':'", "a key needs a ':' and a space after it"),
)


def _unreadable_character(text: str, error: ReaderError, reading: Reading) -> ConfigError:
    before = text[: error.position]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    where = f"{reading.label}:{line}:{column}" if reading.is_file else reading.label
    code = ord(text[error.position])
    message = f"not valid YAML: the character U+{code:04X} is not allowed"
    return ConfigError(message, where=where, hint="remove it", code="yaml-syntax")
