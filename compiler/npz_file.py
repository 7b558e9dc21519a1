"""Arrays of an .npz file that may come from anywhere: read one at a time, nothing executed.

Nothing is allocated for what a header claims: the header is held against the member's size, and the
member's bytes are read as far as they go.
"""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from compiler.contracts.errors import RunError

_SUFFIX = ".npy"
# Deflate grows by a thousand at most; what else zip knows has no such bound.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# RuntimeError: encrypted, of a later zip version, or nested too deeply.
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Header:
    """What an array's first bytes say of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """An opened .npz file; zipfile closes it when nothing refers to it any more.

    Attributes:
        path: The file.
        names: Of its arrays, in order.
    """

    def __init__(self, path: Path, *, hint: str) -> None:
        """Read the names.

        Args:
            path: The file.
            hint: How to get a good one, for every error.

        Raises:
            RunError: It is no .npz file, or holds a name twice.
        """
        self.path = path
        self._hint = hint
        try:
            self._size = path.stat().st_size
            self._archive = zipfile.ZipFile(path)
        except OSError as e:
            raise RunError(f"cannot be read: {e.strerror or e}", where=str(path)) from e
        except _DAMAGE as e:
            raise self.error("is no .npz file, or a damaged one") from e
        listed = self._archive.namelist()
        self._members = {info.filename: info for info in self._archive.infolist()}
        if len(self._members) < len(listed):
            twice, _ = Counter(listed).most_common(1)[0]
            raise self.error(f"holds {twice!r} twice")
        foreign = next((name for name in listed if not name.endswith(_SUFFIX)), None)
        if foreign is not None:
            raise self.error(f"holds {foreign!r}, which is no array (.npy)")
        self.names = tuple(name.removesuffix(_SUFFIX) for name in listed)

    def error(self, said: str) -> RunError:
        """An error that names this file."""
        return RunError(said, where=str(self.path), hint=self._hint)

    def header(self, name: str) -> Header:
        """Shape and dtype of an array, its values unread.

        Raises:
            RunError: The member is damaged, or holds Python objects.
        """
        try:
            with self._open(name) as stream:
                return self._checked(name, stream)
        except _DAMAGE as e:
            raise self.error(f"{name} cannot be read: {e}") from e

    def read(self, name: str) -> np.ndarray:
        """One array, the caller's own.

        Raises:
            RunError: The member is damaged, or holds Python objects.
        """
        try:
            with self._open(name) as stream:
                header = self._checked(name, stream)
                # One byte more, so that the end is reached and zipfile compares its checksum.
                data = stream.read(header.size + 1)
            flat = np.frombuffer(data, header.dtype, count=math.prod(header.shape))
            order = "F" if header.is_fortran else "C"
            return flat.reshape(header.shape, order=order).copy()
        except _DAMAGE as e:
            raise self.error(f"{name} cannot be read: {e}") from e

    def _open(self, name: str) -> IO[bytes]:
        member = self._members[f"{name}{_SUFFIX}"]
        if member.compress_type not in _COMPRESSIONS:
            raise ValueError("it is compressed in a way that numpy does not write")
        if member.compress_size > self._size:
            raise ValueError("it is longer than the file")
        return self._archive.open(member)

    def _checked(self, name: str, stream: IO[bytes]) -> Header:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"its header is of version {version}, expected {sorted(_HEADERS)}")
        with warnings.catch_warnings():
            # Of headers that Python 2 wrote.
            warnings.simplefilter("ignore")
            shape, is_fortran, dtype = _HEADERS[version](stream)
        header = Header(shape, dtype, is_fortran)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never loaded")
        held = self._members[f"{name}{_SUFFIX}"].file_size - stream.tell()
        if min(shape, default=0) < 0 or header.size != held:
            raise ValueError(f"its header says {header}, but {held} bytes follow")
        return header
