"""A GGUF file's metadata and the places of its tensors, read with strict bounds and no mapping.

(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.) The reader of the `gguf` package maps
the file, makes an array of every token's text (3 seconds for 49152 tokens) and fails on a truncated
file without a name; this one names the key or tensor, and reads what a conversion needs. Block
sizes and dequantization stay the package's.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path

from compiler.contracts.errors import CheckpointError

Scalar = str | int | float | bool
MetadataValue = Scalar | tuple[Scalar, ...]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_DIMENSIONS_LIMIT = 4


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: `blk.3.attn_q.weight`.
        kind: Number of its ggml type, the value of `gguf.GGMLQuantizationType`.
        shape: Row-major, the reverse of the order in the file.
        offset: First byte in the file.
        nbytes: Size as stored.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself; `tensors` is in the order of the file."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """The metadata and tensor places of a GGUF file.

    Raises:
        CheckpointError: It is not a GGUF file of version 2 or 3, is truncated, or contradicts
            itself.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        cursor = _Cursor(stream, path)
        cursor.place = "the header"
        if cursor.take(4) != _MAGIC:
            raise cursor.damage("this is not a GGUF file: it does not begin with 'GGUF'")
        version = cursor.number("I")
        if version not in _VERSIONS:
            raise cursor.damage(f"GGUF version {version} is not supported (2 and 3, little-endian)")
        tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
        metadata = _read_metadata(cursor, key_count)
        tensors = [_read_tensor(cursor) for _ in range(tensor_count)]
        alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise cursor.damage(f"{_ALIGNMENT_KEY} is {alignment}, not a power of two")
        data_start = -(-cursor.position // alignment) * alignment
    return GgufHeader(path, metadata, _placed(cursor, tensors, data_start))


class _Cursor:
    """The read position in a file of known size; `place` names what is being read, for errors."""

    def __init__(self, stream: BufferedReader, path: Path) -> None:
        self.size = os.fstat(stream.fileno()).st_size
        self.position = 0
        self.place = ""
        self._stream = stream
        self._path = path

    def damage(self, message: str) -> CheckpointError:
        return CheckpointError(
            message,
            where=str(self._path),
            hint="the file is damaged or was not copied whole: download or copy it again",
            code="damaged-file",
        )

    def need(self, nbytes: int) -> None:
        if self.position + nbytes > self.size:
            raise self.damage(
                f"the file ends at byte {self.size}, {self.place} needs {self.position + nbytes}"
            )

    def take(self, nbytes: int) -> bytes:
        self.need(nbytes)
        self.position += nbytes
        return self._stream.read(nbytes)

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.damage(f"{self.place} is not UTF-8") from e


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for position in range(count):
        cursor.place = f"metadata key {position}"
        key = cursor.text()
        cursor.place = f"metadata '{key}'"
        if key in metadata:
            raise cursor.damage(f"metadata '{key}' is given twice")
        metadata[key] = _read_value(cursor, cursor.number("I"))
    return metadata


def _read_value(cursor: _Cursor, kind: int) -> MetadataValue:
    if kind == _STRING:
        return cursor.text()
    if kind in _SCALARS:
        return _read_numbers(cursor, kind, 1)[0]
    if kind != _ARRAY:
        raise cursor.damage(f"{cursor.place} has the unknown type {kind}")
    item, count = cursor.number("I"), cursor.number("Q")
    if item in _SCALARS:
        return _read_numbers(cursor, item, count)
    if item == _STRING:
        cursor.need(8 * count)
        return tuple(cursor.text() for _ in range(count))
    raise cursor.damage(f"{cursor.place} is an array of the unknown type {item}")


def _read_numbers(cursor: _Cursor, kind: int, count: int) -> tuple[Scalar, ...]:
    width = struct.calcsize(_SCALARS[kind])
    cursor.need(width * count)
    return struct.unpack(f"<{count}{_SCALARS[kind]}", cursor.take(width * count))


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor.place = "the list of tensors"
    name = cursor.text()
    cursor.place = f"tensor '{name}'"
    rank = cursor.number("I")
    if not 1 <= rank <= _DIMENSIONS_LIMIT:
        raise cursor.damage(f"tensor '{name}' has {rank} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(rank))[::-1]
    kind = cursor.number("I")
    offset = cursor.number("Q")
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError as e:
        raise cursor.damage(f"tensor '{name}' has the unknown ggml type {kind}") from e
    if 0 in shape or shape[-1] % block:
        raise cursor.damage(f"tensor '{name}' of shape {list(shape)} is not in blocks of {block}")
    return GgufTensor(name, kind, shape, offset, prod(shape) // block * block_bytes)


def _placed(cursor: _Cursor, tensors: list[GgufTensor], data_start: int) -> dict[str, GgufTensor]:
    """The tensors with offsets from the start of the file; inside it, and not overlapping."""
    placed: dict[str, GgufTensor] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.name)):
        if tensor.name in placed:
            raise cursor.damage(f"tensor '{tensor.name}' is given twice")
        if tensor.offset < end:
            raise cursor.damage(f"tensor '{tensor.name}' overlaps the tensor before it")
        end = tensor.offset + tensor.nbytes
        if data_start + end > cursor.size:
            raise cursor.damage(
                f"the file ends at byte {cursor.size}, "
                f"tensor '{tensor.name}' needs {data_start + end}"
            )
        placed[tensor.name] = GgufTensor(
            tensor.name, tensor.kind, tensor.shape, data_start + tensor.offset, tensor.nbytes
        )
    return placed
