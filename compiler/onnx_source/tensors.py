"""Initializers of an ONNX file as stored tensors: file, offset, shape, dtype; no weight is read.

Data lies in the .onnx itself or in a file beside it (`data_location: EXTERNAL`,
https://onnx.ai/onnx/repo-docs/ExternalData.html). A location that leaves the folder is refused.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import TensorProto

from compiler.contracts.errors import CheckpointError
from compiler.contracts.weights import DTYPES, StoredTensor
from compiler.onnx_source.wire import Skeleton

_TYPES = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)
_HINT = "export it again in float32, with its weights in the file or in a file beside it"


@dataclass(frozen=True)
class Initializer:
    """One initializer, its bytes located and not read.

    Attributes:
        stored: Where its bytes lie; None where the file spells them as numbers (integers).
        proto: As the skeleton holds it, hollow where it is large.
        path: The .onnx file.
    """

    name: str
    stored: StoredTensor | None
    proto: TensorProto
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """As declared."""
        return tuple(self.proto.dims)

    @property
    def dtype(self) -> np.dtype:
        """As declared."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.proto.data_type))

    def read(self) -> np.ndarray:
        """The value of a small tensor."""
        if self.proto.data_location != TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(self.proto)
        place = _external_place(self.proto, self.path)
        data = _pread(place, math.prod(self.shape) * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Place:
    file: Path
    offset: int


def initializers(path: Path, skeleton: Skeleton) -> dict[str, Initializer]:
    """Every initializer of the graph by name, its place checked against the files' sizes.

    Raises:
        CheckpointError: A data file is missing, short or outside the folder, or a tensor's type
            or declaration cannot be used; names file and tensor.
    """
    graph = skeleton.model.graph
    if graph.sparse_initializer:
        raise _error(path, graph.sparse_initializer[0].values.name, "it is a sparse tensor")
    return {proto.name: _located(path, proto, skeleton) for proto in graph.initializer}


def data_files(path: Path, skeleton: Skeleton) -> tuple[Path, ...]:
    """The .onnx file and the data files that its tensors name, sorted."""
    external = {
        _external_place(proto, path).file
        for proto in skeleton.model.graph.initializer
        if proto.data_location == TensorProto.EXTERNAL
    }
    return tuple(sorted({path, *external}))


def _located(path: Path, proto: TensorProto, skeleton: Skeleton) -> Initializer:
    if proto.data_type not in _TYPES:
        name = TensorProto.DataType.Name(proto.data_type).lower()
        raise _error(path, proto.name, f"its type {name} is not supported")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type))
    nbytes = math.prod(proto.dims) * dtype.itemsize
    if proto.data_location == TensorProto.EXTERNAL:
        place = _external_place(proto, path)
        declared = _entry(proto, path, "length")
        if declared is not None and declared != nbytes:
            raise _error(
                path, proto.name, f"{declared} bytes are declared, its shape needs {nbytes}"
            )
    else:
        span = skeleton.spans.get(proto.name)
        if span is None:
            return Initializer(proto.name, None, proto, path)
        if span.nbytes != nbytes:
            raise _error(
                path, proto.name, f"it holds {span.nbytes} bytes, its shape needs {nbytes}"
            )
        place = _Place(path, span.offset)
    size = place.file.stat().st_size
    if place.offset + nbytes > size:
        raise _error(
            path,
            proto.name,
            f"its data ends at byte {place.offset + nbytes} of {place.file.name}, which has {size}",
        )
    stored = None
    if dtype.name in DTYPES:
        stored = StoredTensor(place.file, place.offset, tuple(proto.dims), dtype.name)
    return Initializer(proto.name, stored, proto, path)


def _external_place(proto: TensorProto, path: Path) -> _Place:
    location = next((e.value for e in proto.external_data if e.key == "location"), "")
    relative = PurePosixPath(location)
    if not location or relative.is_absolute() or ".." in relative.parts:
        raise _error(path, proto.name, f"its data location {location!r} leaves the folder")
    file = path.parent / relative
    if not file.is_file():
        raise CheckpointError(
            f"the data file {location} of tensor '{proto.name}' is missing",
            where=str(path),
            hint=f"put it beside the .onnx file, in {path.parent}",
            code="no-file",
        )
    return _Place(file, _entry(proto, path, "offset") or 0)


def _entry(proto: TensorProto, path: Path, key: str) -> int | None:
    text = next((entry.value for entry in proto.external_data if entry.key == key), None)
    if text is None:
        return None
    if not text.isdecimal():
        raise _error(path, proto.name, f"the {key} of its data is {text!r}, not a number")
    return int(text)


def _pread(place: _Place, nbytes: int) -> bytes:
    with place.file.open("rb", buffering=0) as stream:
        return os.pread(stream.fileno(), nbytes, place.offset)


def _error(path: Path, tensor: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{tensor}': {problem}", where=str(path), hint=_HINT, code="onnx-tensor"
    )
