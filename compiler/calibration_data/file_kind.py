"""Whether a path is a file of the kind that is asked for, from its first bytes."""

import os
from pathlib import Path
from typing import IO

from compiler.contracts.errors import DatasetError

GZIP_SUFFIX = ".gz"
GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
COPY_AGAIN = "the file is damaged or was not copied whole: download or copy it again"

# What a name promises and the first bytes deny: (first bytes, what it is, what to do).
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch it with `git lfs pull`"),
    (b"PAR1", "a Parquet file", 'write its texts as lines of {"text": ...} and `type: jsonl`'),
    (GZIP_MAGIC, "packed with gzip", f"unpack it, or give its name the ending {GZIP_SUFFIX}"),
    (ZIP_MAGIC, "a zip archive", "unpack it and name a file of it"),
)


def head_of(path: Path, *, allowed: bytes = b"") -> bytes:
    """The first bytes of a regular file that is not empty, nor of a kind that they give away.

    Args:
        path: The file.
        allowed: The first bytes of the one such kind that is read.

    Raises:
        DatasetError: It is not such a file.
    """
    if os.path.isdir(path):
        raise DatasetError("is a folder, not a file", where=str(path), hint="name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise DatasetError("is not a regular file", where=str(path), hint="name a file on a disk")
    with open_bytes(path) as stream:
        head = stream.read(32)
    if not head:
        raise DatasetError("is empty", where=str(path), hint=COPY_AGAIN, code="damaged-file")
    for start, kind, hint in _FOREIGN:
        if head.startswith(start) and start != allowed:
            raise DatasetError(f"is {kind}", where=str(path), hint=hint, code="other-kind")
    return head


def open_bytes(path: Path) -> IO[bytes]:
    """The file, opened.

    Raises:
        DatasetError: It is not there, or may not be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError as e:
        hint = "dataset.path is relative to the YAML's folder; without it, the text that comes"
        hint += " with the package is taken"
        raise DatasetError("no such file", where=str(path), hint=hint, code="no-file") from e
    except (OSError, ValueError) as e:
        raise unreadable(e, place=str(path)) from e


def unreadable(error: Exception, *, place: str) -> DatasetError:
    """What the operating system says about a file, or Python about its name."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    hint = "see to it that this user can read it"
    return DatasetError(f"cannot be read: {reason}", where=place, hint=hint, code="unreadable")
