"""Calibrated weights in the user's cache: one safetensors file, and a record of what made it.

    tensors.safetensors    quantize(W) int8, scale(W) float32, under the expressions' keys
    record.json            sha256 of that file and of each tensor, and a result for each linear

The file is written a tensor at a time, in a fixed order, so that memory holds one layer's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from compiler.checkpoints.safetensors_header import tensors_in
from compiler.contracts.errors import CheckpointError
from compiler.contracts.weights import DTYPES, StoredTensor, Weight
from compiler.hashing import remembered_sha256, sha256_of

TENSORS_FILE = "tensors.safetensors"
RECORD_FILE = "record.json"

_DTYPES = {"I8": "int8", "F32": "float32"}


@dataclass(frozen=True)
class LinearRecord:
    """What calibration did to one module's weight. Errors are shares of the output's energy.

    Attributes:
        module: Its path.
        nearest_error: On the calibration data, with codes rounded to nearest.
        error: With the calibrated codes.
        damping: Share of the mean diagonal that the Hessian was damped by.
        channels: Output channels.
        kept: Those of them whose codes are the ones rounded to nearest, which were no worse.
    """

    module: str
    nearest_error: float
    error: float
    damping: float
    channels: int
    kept: int


@dataclass(frozen=True)
class CalibratedFile:
    """A whole file: where its tensors lie, and their sha256, by expression key."""

    tensors: Mapping[str, StoredTensor]
    digests: Mapping[str, str]
    linears: tuple[LinearRecord, ...]


class CalibratedWriter:
    """Writes a file into a folder; use it as a context.

    Args:
        folder: An empty folder.
        weights: What will be written, in that order: codes and scales.
    """

    def __init__(self, folder: Path, weights: Mapping[str, Weight]) -> None:
        self._folder = folder
        self._expected = list(weights.items())
        self._digests: dict[str, str] = {}
        self._linears: list[LinearRecord] = []
        self._stream: BinaryIO | None = None

    def __enter__(self) -> "CalibratedWriter":
        self._stream = (self._folder / TENSORS_FILE).open("wb")
        self._stream.write(_header(dict(self._expected)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        if kind is not None:
            return
        assert len(self._digests) == len(self._expected), "not every tensor was written"
        record = {
            "sha256": sha256_of(self._folder / TENSORS_FILE),
            "tensors": self._digests,
            "linears": [asdict(linear) for linear in self._linears],
        }
        text = json.dumps(record, indent=2) + "\n"
        (self._folder / RECORD_FILE).write_text(text, encoding="utf-8")

    def add(self, name: str, array: np.ndarray) -> None:
        """The next tensor."""
        expected, weight = self._expected[len(self._digests)]
        assert self._stream is not None
        assert (name, array.shape) == (expected, weight.shape), f"{name} {array.shape}"
        data = array.astype(DTYPES[weight.dtype], copy=False).tobytes()
        self._stream.write(data)
        self._digests[name] = hashlib.sha256(data).hexdigest()

    def add_record(self, linear: LinearRecord) -> None:
        """What is to be known of a module."""
        self._linears.append(linear)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a file, and its record is that file's."""
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
        if not isinstance(record, dict):
            return False
        if record.get("sha256") != remembered_sha256(folder / TENSORS_FILE):
            return False
        read_calibrated(folder)
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return False
    return True


def read_calibrated(folder: Path) -> CalibratedFile:
    """The places of a whole file's tensors; none is read.

    Raises:
        CheckpointError: The file is damaged (`is_whole` says so without an error).
    """
    tensors = tensors_in(folder / TENSORS_FILE, dtypes=_DTYPES)
    record = json.loads((folder / RECORD_FILE).read_bytes())
    digests = {str(name): str(digest) for name, digest in record["tensors"].items()}
    if sorted(digests) != sorted(tensors):
        raise CheckpointError("the record is of other tensors", where=str(folder / RECORD_FILE))
    return CalibratedFile(
        tensors, digests, tuple(LinearRecord(**linear) for linear in record["linears"])
    )


def _header(weights: Mapping[str, Weight]) -> bytes:
    spelled = {ours: theirs for theirs, ours in _DTYPES.items()}
    entries: dict[str, object] = {}
    offset = 0
    for name, weight in weights.items():
        end = offset + prod(weight.shape) * DTYPES[weight.dtype].itemsize
        entries[name] = {
            "dtype": spelled[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
