"""A folder that appears whole or not at all: written beside its place, then renamed.

A new folder never lands on another one, and a replaced one is swapped in one step
(renameat2, https://man7.org/linux/man-pages/man2/rename.2.html), so that a crash at any moment
leaves the old folder or the new one.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
# What a kernel or a file system without these flags answers.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
# Between making its folder and locking it, a process needs far less.
_SETTLED_SECONDS = 60


@contextmanager
def partial_folder(destination: Path) -> Iterator[Path]:
    """A new folder beside `destination`, gone at the end unless it was put in place.

    Parents are made; an error or an interrupt removes them again, and all else that was written.
    What a killed process left here of the same destination is removed first.

    Raises:
        OSError: A parent cannot be made or written.
    """
    made = _make_parents(destination.parent)
    _remove_abandoned(destination)
    folder = destination.parent / f".{destination.name}.partial-{secrets.token_hex(4)}"
    try:
        try:
            folder.mkdir()
            with _locked(folder):
                yield folder
        finally:
            # After a swap this is what stood there before.
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        _remove_parents(made)
        raise


def put_new(folder: Path, destination: Path) -> None:
    """Rename to a place where nothing is.

    Raises:
        FileExistsError: Something is there.
    """
    if _rename(folder, destination, _RENAME_NOREPLACE):
        return
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    folder.rename(destination)


def swap(folder: Path, destination: Path) -> None:
    """Put `folder` where `destination` is, and the other way round."""
    if _rename(folder, destination, _RENAME_EXCHANGE):
        return
    aside = destination.parent / f".{destination.name}.replaced-{secrets.token_hex(4)}"
    destination.rename(aside)
    try:
        folder.rename(destination)
    except BaseException:
        aside.rename(destination)
        raise
    aside.rename(folder)


def _rename(source: Path, destination: Path, flags: int) -> bool:
    """renameat2; False where the system lacks it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = (os.fsencode(source), os.fsencode(destination))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(destination))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: the kernel drops it with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(destination: Path) -> None:
    """Remove partial folders that no process holds any more."""
    pattern = re.compile(re.escape(f".{destination.name}.partial-") + "[0-9a-f]{8}")
    for path in destination.parent.iterdir():
        if not pattern.fullmatch(path.name):
            continue
        # A young one may be about to be locked; one that cannot be opened or locked is another's.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < _SETTLED_SECONDS:
                continue
            with _locked(path):
                shutil.rmtree(path, ignore_errors=True)


def _make_parents(folder: Path) -> list[Path]:
    """Make `folder` and its parents; those that were missing, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    made: list[Path] = []
    try:
        for path in missing:
            path.mkdir(exist_ok=True)
            made.append(path)
    except BaseException:
        _remove_parents(made)
        raise
    return made


def _remove_parents(made: list[Path]) -> None:
    """Remove what `_make_parents` made and nobody has used since."""
    for path in reversed(made):
        with suppress(OSError):
            path.rmdir()
