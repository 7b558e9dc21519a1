"""What is made once and kept in the user's cache, under a lock and moved into place whole."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.contracts.errors import MachineLacks
from compiler.contracts.progress import Progress


def cached_folder(
    entry: Path,
    *,
    is_whole: Callable[[Path], bool],
    make: Callable[[Path], None],
    progress: Progress,
) -> Path:
    """The folder `entry` of the cache, made unless `is_whole(entry)`.

    `make(folder)` fills a new folder beside it, which is renamed when it is complete. A second
    process that wants the same entry waits for the first. A failure or an interrupt leaves nothing
    behind.

    Raises:
        MachineLacks: The cache cannot be written.
    """
    if is_whole(entry):
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_name(f".{entry.name}.lock"), progress):
            if not is_whole(entry):
                _make(entry, make)
    except OSError as e:
        raise MachineLacks(
            f"the cache cannot be filled: {e.strerror or e}",
            where=str(e.filename or entry),
            hint="make room or mend the permissions, or set GRAPHLOWER_CACHE to another folder",
            code="cache",
        ) from e
    return entry


def require_space(folder: Path, nbytes: int, *, purpose: str) -> None:
    """Refuse before the first byte where the file system of `folder` has less than `nbytes` free.

    Raises:
        MachineLacks: There is not enough room.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free >= nbytes:
        return
    raise MachineLacks(
        f"{purpose} needs {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
        where=str(folder),
        hint="make room, or set GRAPHLOWER_CACHE to a folder on a larger disk",
        code="disk-space",
    )


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    partial = entry.with_name(f".{entry.name}.partial")
    _remove(partial)
    try:
        partial.mkdir()
        make(partial)
        _remove(entry)
        partial.rename(entry)
    finally:
        _remove(partial)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock file `path`, removed after use; a dead process holds nothing."""
    descriptor = _acquire(path, progress)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, progress: Progress) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _wait(descriptor, path, progress)
            is_current = _is_same_file(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if is_current:
            return descriptor
        # Its holder removed it while we waited: whoever comes next makes a new one, so do we.
        os.close(descriptor)


def _wait(descriptor: int, path: Path, progress: Progress) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.note(f"waiting for another process that fills {path.parent}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
