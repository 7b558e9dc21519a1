"""JSON of a checkpoint, read strictly: UTF-8, one object, no key twice, errors with their line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from compiler.contracts.errors import CheckpointError


def read_json_object(path: Path) -> dict[str, object]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: It is not JSON, not an object, or names a key twice.
        OSError: The file cannot be read.
    """
    return object_from_json(path.read_bytes(), where=str(path))


def object_from_json(data: bytes, *, where: str) -> dict[str, object]:
    """The object in `data`; `where` is the file that an error names.

    Raises:
        CheckpointError: It is not JSON, not an object, or names a key twice.
    """
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys(where))
    except UnicodeDecodeError as e:
        raise CheckpointError(f"not UTF-8 at byte {e.start}", where=where, code="json") from e
    except json.JSONDecodeError as e:
        place = f"{where}:{e.lineno}:{e.colno}"
        raise CheckpointError(f"not JSON: {e.msg}", where=place, code="json") from e
    except (RecursionError, ValueError) as e:
        raise CheckpointError(f"not readable as JSON: {e}", where=where, code="json") from e
    if not isinstance(parsed, dict):
        raise CheckpointError("the JSON is not an object", where=where, code="json")
    return parsed


def integer(values: Mapping[str, object], key: str) -> int | None:
    """`values[key]` where it is an integer, and not a boolean."""
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _unique_keys(where: str) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        built: dict[str, object] = {}
        for key, value in pairs:
            if key in built:
                raise CheckpointError(
                    f"the key '{key}' is given twice",
                    where=where,
                    hint="remove one of them; JSON readers disagree about which one counts",
                    code="duplicate-key",
                )
            built[key] = value
        return built

    return build
