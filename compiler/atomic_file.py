"""A file that appears whole or not at all: written beside its place, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.contracts.errors import RunError


def check_place(path: Path) -> None:
    """Refuse what `partial_file` would refuse: to be asked before long work, not behind it.

    Raises:
        RunError: The place cannot be written, or something that is no file is there.
    """
    _begun(path, _place(path)).unlink()


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A new, empty file that takes the place of `path` at the end; gone after an error.

    A link is followed.

    Raises:
        RunError: The place cannot be written, or something that is no file is there.
    """
    place = _place(path)
    partial = _begun(path, place)
    try:
        yield partial
        # mkstemp makes it the owner's alone, whatever the umask says.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(place)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _place(path: Path) -> Path:
    place = Path(os.path.realpath(path))
    if os.path.lexists(place) and not place.is_file():
        raise RunError("what is there is not a file", where=str(path), code="cannot-write")
    return place


def _begun(path: Path, place: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}-")
    except OSError as error:
        raise _refused(path, error) from error
    os.close(handle)
    return Path(name)


def _refused(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        hint="name a file in a folder that exists and that you may write",
        code="cannot-write",
    )
