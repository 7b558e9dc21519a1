"""sha256 of files, and a memory of it in the user's cache: weights are hashed once.

An entry is believed while the file's device, inode, size, modification time and change time are
those that were hashed; the change time is set by the kernel, so that bytes altered behind a
restored modification time are noticed. A lost, damaged or unwritable entry costs one more hashing,
never an error.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path

from compiler.contracts.errors import MachineLacks

CACHE_VARIABLE = "GRAPHLOWER_CACHE"

# Two writes within one tick of the kernel's clock (10 ms at 100 Hz) leave equal times.
_CLOCK_TICK_NS = 20_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


def user_cache() -> Path:
    """The user's cache folder, not necessarily existing.

    `$GRAPHLOWER_CACHE`, else `$XDG_CACHE_HOME/graphlower`, else `~/.cache/graphlower`
    (https://specifications.freedesktop.org/basedir-spec/: a relative XDG_CACHE_HOME is ignored).

    Raises:
        MachineLacks: There is no home folder to put it in.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):
        return Path(shared) / "graphlower"
    try:
        return Path.home() / ".cache" / "graphlower"
    except RuntimeError as e:
        raise MachineLacks(
            "there is no home folder for the cache", hint=f"set {CACHE_VARIABLE} to a folder"
        ) from e


def sha256_of(path: Path) -> str:
    """sha256 of a file's content as 64 hexadecimal digits, read in small blocks, never mapped.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """sha256 of a file's content, from the user's cache where the file is as it was hashed.

    Raises:
        OSError: The file cannot be read.
    """
    real = path.resolve(strict=True)
    identity = _identity(real)
    entry = _entry_path(real)
    known = _recall(entry, identity)
    if known is not None:
        return known
    has_settled = _wait_one_tick(real)
    digest = sha256_of(real)
    if has_settled and _identity(real) == identity:
        _remember(entry, identity, digest)
    return digest


def _identity(real: Path) -> list[str | int]:
    state = real.stat()
    numbers = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return [os.fspath(real), *numbers]


def _entry_path(real: Path) -> Path:
    # One entry for each path, so that a changed file replaces its entry and none pile up.
    key = hashlib.sha256(os.fsencode(real)).hexdigest()
    return user_cache() / "sha256" / f"{key}.json"


def _wait_one_tick(real: Path) -> bool:
    """Let the clock move on from the file's last change; False where that lies in the future."""
    age = time.time_ns() - real.stat().st_ctime_ns
    if 0 <= age < _CLOCK_TICK_NS:
        time.sleep((_CLOCK_TICK_NS - age) / 1e9)
    return age >= 0


def _recall(entry: Path, identity: list[str | int]) -> str | None:
    try:
        known = json.loads(entry.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(known, dict) or known.get("identity") != identity:
        return None
    digest = known.get("sha256")
    return digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None


def _remember(entry: Path, identity: list[str | int], digest: str) -> None:
    text = json.dumps({"identity": identity, "sha256": digest})
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent) as temporary:
            written = Path(temporary) / entry.name
            written.write_text(text, encoding="utf-8")
            written.replace(entry)
    except OSError as e:
        logger.info("the sha256 of %s is not remembered: %s", identity[0], e)
