"""A bundle's parameter file as mapped arrays, and memory aligned as compiled kernels ask."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compiler.contracts.errors import BundleError

# Kernels load whole vectors from the start of a tensor.
ALIGNMENT = 64
# numpy lacks bfloat16: such a tensor is mapped as 16-bit integers and seen as bfloat16.
_MAPPED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8}


def map_parameters(file: Path) -> Mapping[str, tuple[np.ndarray, str | None]]:
    """Every tensor of a safetensors file as a mapped array, and the dtype it stands for."""
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    data = np.memmap(file, dtype=np.uint8, mode="c", offset=0)
    start = 8 + header_bytes
    found: dict[str, tuple[np.ndarray, str | None]] = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _MAPPED:
            continue
        begin, end = entry["data_offsets"]
        if (start + begin) % ALIGNMENT:
            raise BundleError(
                f"tensor '{name}' does not start at {ALIGNMENT} bytes", where=str(file)
            )
        array = data[start + begin : start + end].view(_MAPPED[entry["dtype"]])
        dtype = "bfloat16" if entry["dtype"] == "BF16" else None
        found[name] = (array.reshape(entry["shape"]), dtype)
    return found


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at a multiple of the alignment."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    buffer = np.zeros(nbytes + ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % ALIGNMENT
    return buffer[offset : offset + nbytes].view(dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of the alignment."""
    copied = aligned_zeros(array.shape, array.dtype)
    copied[...] = array
    return copied
