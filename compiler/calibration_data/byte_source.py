"""Bytes of one file, read in order and within bounds; every error names file, line or byte.

Text is UTF-8, with or without a byte order mark. A NUL byte is refused: a text has none, and a file
that a crash left half written has many.
"""

import codecs
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from compiler.calibration_data.file_kind import (
    COPY_AGAIN,
    GZIP_MAGIC,
    GZIP_SUFFIX,
    head_of,
    open_bytes,
    unreadable,
)
from compiler.calibration_data.limits import ReadLimits
from compiler.contracts.errors import DatasetError

ByteStream: TypeAlias = IO[bytes] | gzip.GzipFile

BLOCK_BYTES = 1 << 16

_NOT_TEXT = "write the text as UTF-8"


@dataclass(frozen=True)
class Line:
    """One line, its end included, and its place for an error."""

    text: str
    place: str


@contextmanager
def opened(path: Path, limits: ReadLimits) -> Iterator["ByteSource"]:
    """A file's bytes, unpacked where its name ends in `.gz`.

    Raises:
        DatasetError: It is not there, not a file, empty, of another kind, or cannot be read.
    """
    is_packed = path.suffix == GZIP_SUFFIX
    head = head_of(path, allowed=GZIP_MAGIC if is_packed else b"")
    if is_packed and not head.startswith(GZIP_MAGIC):
        message = f"is no gzip file, for all its name: it begins with {head[:8]!r}"
        raise DatasetError(message, where=str(path), hint=COPY_AGAIN, code="other-kind")
    with open_bytes(path) as stream:
        if not is_packed:
            yield ByteSource(stream, place=str(path), limits=limits)
            return
        with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
            yield ByteSource(unpacked, place=str(path), limits=limits)


class ByteSource:
    """What is left of one stream.

    Args:
        stream: Opened for reading; whoever opened it closes it.
        place: Its name in errors.
        limits: How much is read of it.
    """

    def __init__(self, stream: ByteStream, *, place: str, limits: ReadLimits) -> None:
        self.place = place
        self.offset = 0
        self._stream = stream
        self._limits = limits

    def lines(self) -> Iterator[Line]:
        """Line by line.

        Raises:
            DatasetError: A line is too long or no text, or the file is damaged or too large.
        """
        number = 0
        while True:
            start, place = self.offset, f"{self.place}:{number + 1}"
            data = self._read_line(place)
            if not data:
                return
            number += 1
            _refuse_nul(data, start=start, place=place)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as e:
                raise _not_utf8(start + e.start, place=place) from e
            yield Line(text.removeprefix("\ufeff") if start == 0 else text, place)

    def blocks(self) -> Iterator[str]:
        """Text, some `BLOCK_BYTES` at a time, never half a character.

        Raises:
            DatasetError: It is no text, or the file is damaged or too large.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        is_first = True
        while True:
            start = self.offset
            decoded_to = start - len(decoder.getstate()[0])
            data = self._counted(self._read(BLOCK_BYTES))
            _refuse_nul(data, start=start, place=self.place)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as e:
                raise _not_utf8(decoded_to + e.start, place=self.place) from e
            yield text.removeprefix("\ufeff") if is_first else text
            is_first = False
            if not data:
                return

    def _read_line(self, place: str) -> bytes:
        limit = self._limits.document_bytes
        data = self._counted(self._read(limit + 1, is_line=True))
        if len(data) > limit:
            message = f"the line is longer than {limit} bytes"
            hint = "write one document a line, and divide those that are larger"
            raise DatasetError(message, where=place, hint=hint, code="too-large")
        return data

    def _read(self, size: int, *, is_line: bool = False) -> bytes:
        try:
            return self._stream.readline(size) if is_line else self._stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as e:
            message = f"is damaged behind byte {self.offset} of its text: {e}"
            raise DatasetError(
                message, where=self.place, hint=COPY_AGAIN, code="damaged-file"
            ) from e
        except OSError as e:
            raise unreadable(e, place=self.place) from e

    def _counted(self, data: bytes) -> bytes:
        self.offset += len(data)
        if self.offset <= self._limits.total_bytes:
            return data
        message = f"{self._limits.total_bytes} bytes of it did not give the windows asked for"
        hint = "ask for fewer (nsamples) or shorter ones (seqlen), or name other data"
        raise DatasetError(message, where=self.place, hint=hint, code="too-large")


def _refuse_nul(data: bytes, *, start: int, place: str) -> None:
    at = data.find(b"\0")
    if at >= 0:
        message = f"not text: byte {start + at} is NUL"
        raise DatasetError(message, where=place, hint=_NOT_TEXT, code="not-text")


def _not_utf8(offset: int, *, place: str) -> DatasetError:
    return DatasetError(f"not UTF-8 at byte {offset}", where=place, hint=_NOT_TEXT, code="not-text")
