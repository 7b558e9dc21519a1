"""One JSON object -> the strings that are wanted of it."""

import json
from collections.abc import Mapping

from compiler.contracts.errors import DatasetError

# Of a wrong object's keys; more would bury the message.
_KEYS_SHOWN = 8


def not_json(reason: str, *, place: str, hint: str) -> DatasetError:
    """What is no JSON, and where."""
    return DatasetError(f"not JSON: {reason}", where=place, hint=hint, code="json")


def record_of_line(text: str, *, place: str, hint: str) -> Mapping[str, object]:
    """The object that a line holds.

    Raises:
        DatasetError: It holds none.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as e:
        raise not_json(e.msg, place=f"{place}:{e.colno}", hint=hint) from e
    except (RecursionError, ValueError) as e:
        raise not_json(str(e), place=place, hint=hint) from e
    if not isinstance(found, dict):
        raise DatasetError("holds no JSON object", where=place, hint=hint, code="json")
    return found


def string_of(record: Mapping[str, object], key: str, *, place: str, hint: str) -> str:
    """The text under a key.

    Raises:
        DatasetError: There is no such key, no text under it, or half a character in it.
    """
    if key not in record:
        raise DatasetError(
            f"there is no '{key}' (there are: {_listed(record)})",
            where=place,
            hint=hint,
            code="columns",
        )
    value = record[key]
    if not isinstance(value, str):
        raise DatasetError(f"'{key}' is not text", where=place, hint=hint, code="columns")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise DatasetError(
            f"'{key}' holds half a character (a lone surrogate) at {e.start}",
            where=place,
            hint="mend or remove the document",
            code="not-text",
        ) from e
    return value


def _listed(record: Mapping[str, object]) -> str:
    keys = [repr(key) for key in record]
    more = [f"{len(keys) - _KEYS_SHOWN} more"] if len(keys) > _KEYS_SHOWN else []
    return ", ".join([*keys[:_KEYS_SHOWN], *more]) or "none"
