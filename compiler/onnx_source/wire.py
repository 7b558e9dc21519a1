"""Where the weights lie inside an .onnx file, found by walking its protobuf wire format.

    ModelProto.graph (7) > GraphProto.initializer (5) > TensorProto.raw_data (9), float_data (4)

`read_skeleton` gives the model without the bytes of its large tensors, and the place of every
tensor's bytes in the file: nothing is copied, so that memory does not grow with the model. The
format: https://protobuf.dev/programming-guides/encoding; field numbers: onnx/onnx.proto.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import CONSTANT_BYTES

_GRAPH, _INITIALIZER = 7, 5
_NAME, _FLOAT_DATA, _RAW_DATA = 8, 4, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True)
class Span:
    """`nbytes` bytes at `offset` of the file."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Skeleton:
    """A model whose large tensors are hollow, and where each tensor's bytes lie in its file."""

    model: onnx.ModelProto
    spans: dict[str, Span]


@dataclass(frozen=True)
class _Field:
    """One field of a message: its bytes from `start` (the key) to `stop`, content at `content`."""

    number: int
    wire: int
    start: int
    content: int
    stop: int


def read_skeleton(path: Path) -> Skeleton:
    """Read all of a model but the bytes of its large initializers.

    Raises:
        CheckpointError: The file is no ONNX model, or ends early.
    """
    size = path.stat().st_size
    spans: dict[str, Span] = {}
    try:
        with path.open("rb") as stream:
            data = b"".join(_model_parts(stream, size, spans))
        model = onnx.load_from_string(data)
    except (DecodeError, ValueError) as e:
        raise CheckpointError(
            f"it is no ONNX model, or damaged: {e}",
            where=str(path),
            hint="export or copy it again",
            code="no-onnx",
        ) from e
    if not model.graph.node:
        raise CheckpointError(
            "it holds no graph", where=str(path), hint="export it again", code="no-onnx"
        )
    return Skeleton(model, spans)


def _model_parts(stream: BinaryIO, size: int, spans: dict[str, Span]) -> Iterator[bytes]:
    for field in _fields(stream, 0, size):
        if field.number == _GRAPH and field.wire == _BYTES:
            graph = b"".join(_graph_parts(stream, field, spans))
            yield _delimited(_GRAPH, graph)
        else:
            yield _read(stream, field.start, field.stop)


def _graph_parts(stream: BinaryIO, graph: _Field, spans: dict[str, Span]) -> Iterator[bytes]:
    for field in _fields(stream, graph.content, graph.stop):
        if field.number == _INITIALIZER and field.wire == _BYTES:
            tensor = b"".join(_tensor_parts(stream, field, spans))
            yield _delimited(_INITIALIZER, tensor)
        else:
            yield _read(stream, field.start, field.stop)


def _tensor_parts(stream: BinaryIO, tensor: _Field, spans: dict[str, Span]) -> Iterator[bytes]:
    """The tensor's fields, without its data where that is large."""
    name, span = "", None
    for field in _fields(stream, tensor.content, tensor.stop):
        if field.wire == _BYTES and field.number in (_FLOAT_DATA, _RAW_DATA):
            if span is not None:
                raise ValueError("a tensor holds its data in several pieces")
            span = Span(field.content, field.stop - field.content)
            if span.nbytes > CONSTANT_BYTES:
                continue
        if field.wire == _BYTES and field.number == _NAME:
            name = _read(stream, field.content, field.stop).decode()
        yield _read(stream, field.start, field.stop)
    if span is not None:
        spans[name] = span


def _fields(stream: BinaryIO, start: int, stop: int) -> Iterator[_Field]:
    """The fields of the message between two offsets; the stream may move between them."""
    position = start
    while position < stop:
        stream.seek(position)
        key = _varint(stream)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            content = stream.tell()
            _varint(stream)
            end = stream.tell()
        elif wire == _BYTES:
            length = _varint(stream)
            content = stream.tell()
            end = content + length
        elif wire in _FIXED_SIZES:
            content = stream.tell()
            end = content + _FIXED_SIZES[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if end > stop or number == 0:
            raise ValueError(f"the field at byte {position} ends beyond byte {stop}")
        yield _Field(number, wire, position, content, end)
        position = end


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("the file ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")


def _read(stream: BinaryIO, start: int, stop: int) -> bytes:
    stream.seek(start)
    data = stream.read(stop - start)
    if len(data) != stop - start:
        raise ValueError(f"the file ends before byte {stop}")
    return data


def _delimited(number: int, content: bytes) -> bytes:
    out = io.BytesIO()
    for value in (number << 3 | _BYTES, len(content)):
        rest = value
        while rest > 0x7F:
            out.write(bytes((rest & 0x7F | 0x80,)))
            rest >>= 7
        out.write(bytes((rest,)))
    return out.getvalue() + content
