"""Alpaca: one JSON array of {instruction, input, output}, taken apart object by object.

A decoder reads one object from the front of a buffer. Where it fails at the buffer's end, the
object may go on: the buffer grows by its own length, so that an object is parsed a few times, not
once for each block. Where it fails before, more text would not help.
"""

import json
import re
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from compiler.calibration_data.byte_source import ByteSource, opened
from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.records import not_json, string_of
from compiler.contracts.errors import DatasetError

_FORM = 'write [{"instruction": "...", "input": "...", "output": "..."}, ...]'
_BLANKS = re.compile(r"[ \t\n\r]*")
_KEYS = ("instruction", "input", "output")
# A truncated escape or literal is reported at its start, this near the end.
_TAIL = 16


def texts_of_alpaca(path: Path, limits: ReadLimits) -> Generator[str, None, None]:
    """Instruction, input and output of each object, a newline behind each of them.

    Raises:
        DatasetError: The file, or an object of it, is not of that form.
    """
    with opened(path, limits) as source:
        for record, place in _Array(source, limits.document_bytes).records():
            parts = [string_of(record, key, place=place, hint=_FORM) for key in _KEYS]
            yield "".join(f"{part}\n" for part in parts if part)


class _Array:
    """One array, read once: a buffer, where in it the rest begins, and which line that is."""

    def __init__(self, source: ByteSource, limit: int) -> None:
        self._place = source.place
        self._blocks = source.blocks()
        self._limit = limit
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._line = 1
        self._count = 0

    def records(self) -> Iterator[tuple[Mapping[str, object], str]]:
        """Each object, and its place for an error."""
        self._take("[", "this is no JSON array: it does not begin with '['")
        while self._peek() != "]":
            if self._count:
                self._take(",", f"expected ',' or ']' behind object {self._count}")
            self._count += 1
            yield self._record()
        self._take("]", "expected ']'")
        if self._peek():
            raise self._wrong("there is more behind the array")

    def _record(self) -> tuple[Mapping[str, object], str]:
        if self._peek() != "{":
            raise self._wrong(f"expected object {self._count}, which begins with '{{'")
        place = f"{self._place}:{self._line}"
        while True:
            try:
                record, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as e:
                self._grow_past(e)
            except (RecursionError, ValueError) as e:
                raise not_json(str(e), place=place, hint=_FORM) from e
            else:
                break
        if end - self._at > self._limit:
            raise self._too_large()
        self._move(end)
        return record, place

    def _grow_past(self, error: json.JSONDecodeError) -> None:
        """Read on where the object may only be cut; raise where it is wrong or too large."""
        held = len(self._buffer) - self._at
        is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _TAIL
        if is_cut and held > self._limit:
            raise self._too_large() from error
        if is_cut and self._grow(held):
            return
        if is_cut:
            raise self._wrong(f"the file ends within object {self._count}") from error
        line = self._line + self._buffer.count("\n", self._at, error.pos)
        place = f"{self._place}:{line}:{error.colno}"
        raise not_json(f"{error.msg} (object {self._count})", place=place, hint=_FORM) from error

    def _take(self, mark: str, otherwise: str) -> None:
        if self._peek() != mark:
            raise self._wrong(otherwise)
        self._move(self._at + 1)

    def _peek(self) -> str:
        """The first character that is not blank; empty at the file's end."""
        while True:
            blanks = _BLANKS.match(self._buffer, self._at)
            assert blanks is not None, "no blanks match, too"
            self._move(blanks.end())
            if self._at < len(self._buffer) or not self._grow(1):
                return self._buffer[self._at : self._at + 1]

    def _move(self, to: int) -> None:
        self._line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _grow(self, size: int) -> bool:
        """Hold `size` characters more, or what is left; False when nothing was."""
        parts, grown = [self._buffer[self._at :]], 0
        for block in self._blocks:
            parts.append(block)
            grown += len(block)
            if grown >= size:
                break
        self._buffer, self._at = "".join(parts), 0
        return grown > 0

    def _wrong(self, message: str) -> DatasetError:
        hint = _FORM + "; for objects one a line, `type: jsonl`"
        return not_json(message, place=f"{self._place}:{self._line}", hint=hint)

    def _too_large(self) -> DatasetError:
        return DatasetError(
            f"object {self._count} is longer than {self._limit} characters",
            where=f"{self._place}:{self._line}",
            hint="divide or remove it",
            code="too-large",
        )
