"""Where the tensors of one safetensors file lie, from its header alone: no tensor data is read.

    8 bytes: N, little-endian | N bytes of JSON: name -> dtype, shape, data_offsets | the data

(https://huggingface.co/docs/safetensors, section "Format".) The tensors must fill the data from its
first byte to the end of the file, without gap or overlap, so that a file cut short is noticed here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from compiler.checkpoints.json_source import object_from_json
from compiler.contracts.errors import CheckpointError, CompilerError, raise_all
from compiler.contracts.weights import DTYPES, StoredTensor

# The limit of the format's own implementation.
HEADER_LIMIT = 100_000_000

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
MODEL_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DAMAGED = "the file is damaged or was not copied whole: download or copy it again"


@dataclass(frozen=True)
class _Entry:
    """One tensor as the header declares it; offsets count from the first byte of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensors_in(path: Path, *, dtypes: Mapping[str, str] = MODEL_DTYPES) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Args:
        path: The file.
        dtypes: What may be in it: the format's name of a type -> ours.

    Raises:
        CheckpointError: The header is malformed, the file is truncated, or a dtype is not
            supported.
        OSError: The file cannot be read.
    """
    header, data_start, size = _read_header(path)
    entries = [
        _parse_entry(path, name, declared) for name, declared in header.items() if name != _METADATA
    ]
    _check_layout(path, entries, data_start=data_start, size=size)
    _check_dtypes(path, entries, dtypes)
    _check_sizes(path, entries, dtypes)
    return {
        entry.name: StoredTensor(path, data_start + entry.begin, entry.shape, dtypes[entry.dtype])
        for entry in entries
    }


def _read_header(path: Path) -> tuple[dict[str, object], int, int]:
    """The parsed header, the offset of the data, and the size of the file."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size < _LENGTH_BYTES:
            raise _damage(path, f"the file has {size} bytes, too few for a safetensors header")
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > HEADER_LIMIT:
            raise _damage(
                path, f"the header claims {length} bytes, over the limit of {HEADER_LIMIT}"
            )
        if _LENGTH_BYTES + length > size:
            needed = _LENGTH_BYTES + length
            raise _damage(path, f"the file ends at byte {size}, its header needs {needed}")
        text = stream.read(length)
    return object_from_json(text, where=f"{path}: header"), _LENGTH_BYTES + length, size


def _parse_entry(path: Path, name: str, declared: object) -> _Entry:
    if not isinstance(declared, dict):
        raise _damage(path, f"tensor '{name}' is not described by an object")
    fields: Mapping[str, object] = declared
    dtype = fields.get("dtype")
    shape = _naturals(fields.get("shape"))
    offsets = _naturals(fields.get("data_offsets"))
    if not isinstance(dtype, str):
        raise _damage(path, f"tensor '{name}' has no dtype")
    if shape is None:
        raise _damage(path, f"tensor '{name}' has the shape {fields.get('shape')}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damage(path, f"tensor '{name}' has the data_offsets {fields.get('data_offsets')}")
    return _Entry(name, dtype, shape, offsets[0], offsets[1])


def _naturals(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    if any(not isinstance(item, int) or isinstance(item, bool) or item < 0 for item in value):
        return None
    return tuple(value)


def _check_layout(path: Path, entries: list[_Entry], *, data_start: int, size: int) -> None:
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end, entry.name)):
        if entry.begin < position:
            raise _damage(path, f"tensor '{entry.name}' overlaps the tensor before it")
        if entry.begin > position:
            gap = entry.begin - position
            raise _damage(path, f"{gap} bytes before tensor '{entry.name}' belong to no tensor")
        position = entry.end
        if data_start + position > size:
            needed = data_start + position
            raise _damage(
                path, f"the file ends at byte {size}, tensor '{entry.name}' needs {needed}"
            )
    if data_start + position < size:
        extra = size - data_start - position
        raise _damage(path, f"{extra} bytes after the last tensor belong to no tensor")


def _check_dtypes(path: Path, entries: list[_Entry], dtypes: Mapping[str, str]) -> None:
    refused: dict[str, list[str]] = {}
    for entry in entries:
        if entry.dtype not in dtypes:
            refused.setdefault(entry.dtype, []).append(entry.name)
    errors: list[CompilerError] = [
        CheckpointError(
            f"tensor '{names[0]}' is {dtype}"
            + (f", and so are {len(names) - 1} more" if len(names) > 1 else ""),
            where=str(path),
            hint=f"weights are read as {', '.join(dtypes)}; use the unquantized checkpoint",
            code="tensor-dtype",
        )
        for dtype, names in sorted(refused.items())
    ]
    raise_all(errors)


def _check_sizes(path: Path, entries: list[_Entry], dtypes: Mapping[str, str]) -> None:
    for entry in entries:
        expected = prod(entry.shape) * DTYPES[dtypes[entry.dtype]].itemsize
        if expected != entry.end - entry.begin:
            shape = list(entry.shape)
            raise _damage(
                path,
                f"tensor '{entry.name}' has {entry.end - entry.begin} bytes, "
                f"{entry.dtype} {shape} needs {expected}",
            )


def _damage(path: Path, message: str) -> CheckpointError:
    return CheckpointError(message, where=str(path), hint=_DAMAGED, code="damaged-file")
