"""What was measured of rounding, kept in the user's cache by the content of all that decides it.

A lost, damaged or unwritable entry costs one more measurement, never an error.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from compiler.atomic_file import partial_file
from compiler.contracts.errors import RunError
from compiler.hashing import user_cache

Found = TypeVar("Found")

logger = logging.getLogger(__name__)


def remembered(key: str, kind: TypeAdapter[Found], make: Callable[[], Found]) -> Found:
    """What is kept under `key`, or what `make` gives, which is kept then."""
    file = user_cache() / "sensitivity" / f"{key}.json"
    known = _read(file, kind)
    if known is not None:
        return known
    made = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(file) as partial:
            partial.write_text(json.dumps(kind.dump_python(made)), encoding="utf-8")
    except (OSError, RunError) as error:
        logger.info("%s is not remembered: %s", file.name, error)
    return made


def _read(file: Path, kind: TypeAdapter[Found]) -> Found | None:
    try:
        return kind.validate_python(json.loads(file.read_bytes()))
    except (OSError, ValueError):  # pydantic's is one
        return None
