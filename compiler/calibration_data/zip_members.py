"""The CSV files of a zip archive from elsewhere, each read as a stream; nothing is written.

All of the archive is judged before a byte of it is unpacked: a name that leaves the folder, a link,
a password, a name given twice, or sizes beyond the limits refuse it. No file yields more than it
declares, so that the declared sizes bound what is read.
"""

import os
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path, PurePosixPath

from compiler.calibration_data.byte_source import ByteSource
from compiler.calibration_data.file_kind import ZIP_MAGIC, head_of, open_bytes
from compiler.calibration_data.limits import ReadLimits
from compiler.contracts.errors import DatasetError

_SUFFIX = ".csv"
# Deflate is unpacked piece by piece; of the others zipfile unpacks a block whole, of any size.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
# Below this no expansion does harm.
_SMALL = 1 << 20
# What zipfile raises for a damaged archive; RuntimeError: of a later zip version.
_DAMAGE = (zipfile.BadZipFile, RuntimeError, ValueError, struct.error, EOFError, OSError)
_PACK_AGAIN = "pack the CSV files anew, with an ordinary zip program"


def csv_sources(path: Path, limits: ReadLimits) -> Generator[ByteSource, None, None]:
    """Each CSV file in order of name, to be read before the next is asked for.

    Raises:
        DatasetError: The archive is damaged, unsafe or without a CSV file.
    """
    head_of(path, allowed=ZIP_MAGIC)
    with open_bytes(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limits.archive_bytes:
            message = f"is an archive of {size} bytes, more than {limits.archive_bytes}"
            raise _refused(message, place=str(path), code="too-large")
        try:
            archive = zipfile.ZipFile(stream)
        except _DAMAGE as e:
            raise _refused(f"is a damaged archive: {e}", place=str(path)) from e
        with archive:
            for member in _safe_members(archive.infolist(), path, limits):
                yield from _source(archive, member, path, limits)


def _source(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, limits: ReadLimits
) -> Generator[ByteSource, None, None]:
    place = _place(path, member)
    try:
        unpacked = archive.open(member)
    except _DAMAGE as e:
        raise _refused(f"is damaged: {e}", place=place) from e
    with unpacked:
        source = ByteSource(unpacked, place=place, limits=limits)
        yield source
        if source.offset != member.file_size:
            raise _refused(
                f"ends after {source.offset} of {member.file_size} declared bytes", place=place
            )


def _safe_members(
    members: Sequence[zipfile.ZipInfo], path: Path, limits: ReadLimits
) -> list[zipfile.ZipInfo]:
    if len(members) > limits.members:
        message = f"holds {len(members)} files, more than {limits.members}"
        raise _refused(message, place=str(path), code="too-large")
    for member in members:
        _refuse_unsafe(member, _place(path, member))
    (name, times), *_ = Counter(member.filename for member in members).most_common(1) or [("", 0)]
    if times > 1:
        raise _refused(f"holds {name!r} {times} times", place=str(path))
    files = [member for member in members if _is_csv(member)]
    if not files:
        held = ", ".join(repr(member.filename) for member in members[:4]) or "nothing"
        raise DatasetError(
            f"there is no {_SUFFIX} file in the archive (it holds {held})",
            where=str(path),
            hint="name C-Eval's own archive, ceval-exam.zip",
            code="other-kind",
        )
    for member in files:
        _refuse_large(member, _place(path, member), limits)
    total = sum(member.file_size for member in files)
    if total > limits.total_bytes:
        message = f"unpacks to {total} bytes, more than {limits.total_bytes}"
        raise _refused(message, place=str(path), code="too-large")
    return sorted(files, key=lambda member: member.filename)


def _is_csv(member: zipfile.ZipInfo) -> bool:
    """Whether it is data; what macOS adds beside a file is not."""
    name = PurePosixPath(member.filename)
    is_hidden = name.name.startswith(".") or name.parts[0] == "__MACOSX"
    return name.suffix.lower() == _SUFFIX and not member.is_dir() and not is_hidden


def _refuse_unsafe(member: zipfile.ZipInfo, place: str) -> None:
    name = PurePosixPath(member.filename)
    written = member.orig_filename
    is_odd = not written.isprintable() or "\\" in written or written[1:2] == ":"
    if is_odd or name.is_absolute() or ".." in name.parts or not name.parts:
        raise _refused("its name is no path inside the archive", place=place, code="unsafe")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _refused("is a symbolic link", place=place, code="unsafe")
    if member.flag_bits & _ENCRYPTED:
        raise _refused("is encrypted", place=place)


def _refuse_large(member: zipfile.ZipInfo, place: str, limits: ReadLimits) -> None:
    if member.compress_type not in _COMPRESSIONS:
        message = f"is packed by method {member.compress_type}, which is not deflate"
        raise _refused(message, place=place)
    size, packed = member.file_size, member.compress_size
    if size > limits.member_bytes:
        message = f"declares {size} bytes, more than {limits.member_bytes}"
        raise _refused(message, place=place, code="too-large")
    if size > _SMALL and size > packed * limits.expansion:
        message = f"declares {size} bytes in {packed}, more than {limits.expansion} times as many"
        raise _refused(message, place=place, code="too-large")


def _place(path: Path, member: zipfile.ZipInfo) -> str:
    name = member.orig_filename
    return f"{path}: {name if name.isprintable() else ascii(name)}"


def _refused(message: str, *, place: str, code: str = "damaged-file") -> DatasetError:
    return DatasetError(message, where=place, hint=_PACK_AGAIN, code=code)
