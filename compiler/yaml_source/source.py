"""A parsed YAML file: the plain tree, and where each value of it stands."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from compiler.contracts.errors import ConfigError

YamlValue: TypeAlias = (
    bool | int | float | str | datetime.date | list["YamlValue"] | dict[str, "YamlValue"] | None
)
YamlPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """Where a value stands: its place, its key's place, and a scalar's text as it is spelled."""

    place: str
    key_place: str
    spelling: str | None = None


@dataclass(frozen=True)
class Source:
    """A parsed file.

    Attributes:
        label: The file as the user named it.
        data: The tree; None when the file could not be read or parsed at all.
        errors: Everything that is wrong with the file as YAML, in the order of the file.
        marks: Path -> where it stands; for a value from the command line, the option.
    """

    label: str
    data: YamlValue
    errors: tuple[ConfigError, ...] = ()
    marks: Mapping[YamlPath, Mark] = field(default_factory=dict)

    def place(self, path: YamlPath) -> str:
        """`file:line:column` of the value, or of its nearest ancestor that exists.

        A section in block style stands where its key stands, every other value where it begins.
        """
        mark = self._nearest(path)
        return self.label if mark is None else mark.place

    def key_place(self, path: YamlPath) -> str:
        """`file:line:column` of the key in front of the value, or of the nearest ancestor's key."""
        mark = self._nearest(path)
        return self.label if mark is None else mark.key_place

    def spelling(self, path: YamlPath) -> str | None:
        """A scalar as the user wrote it; None for lists, mappings and what does not exist."""
        mark = self.marks.get(path)
        return None if mark is None else mark.spelling

    def _nearest(self, path: YamlPath) -> Mark | None:
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                return mark
        return None
