"""A rank's parameters as one safetensors file, evaluated and written a block at a time.

    8 bytes: length of the header
    header:  JSON, padded with spaces so that the data starts at a multiple of 4096
    data:    tensors by name, each at a multiple of 64

The format forbids holes (https://github.com/huggingface/safetensors#format), so what lies between
two tensors is a tensor of its own: `_padding.<n>`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from compiler.contracts.errors import CheckpointError
from compiler.contracts.weight_values import chunks
from compiler.contracts.weights import CheckpointRef, Weight

DATA_ALIGNMENT = 4096
TENSOR_ALIGNMENT = 64
PADDING_PREFIX = "_padding."

_SPELLED: Mapping[str, str] = MappingProxyType(
    {
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "int8": "I8",
        "uint8": "U8",
        "int32": "I32",
        "int64": "I64",
    }
)


@dataclass(frozen=True)
class ParamsLayout:
    """Where everything in the file will lie.

    Attributes:
        header: The file's first bytes, a multiple of `DATA_ALIGNMENT`.
        tensors: Name -> weight, in the order of the file.
        nbytes: Size of the whole file.
    """

    header: bytes
    tensors: Mapping[str, Weight]
    nbytes: int


def params_layout(tensors: Mapping[str, Weight]) -> ParamsLayout:
    """Lay the tensors out by name; equal tensors give equal headers."""
    entries: dict[str, object] = {}
    offset = 0
    for name in sorted(tensors):
        assert not name.startswith(PADDING_PREFIX), f"{name} is the name of a padding"
        weight = tensors[name]
        end = offset + weight.nbytes
        entries[name] = _entry(_SPELLED[weight.dtype], list(weight.shape), offset, end)
        offset = end + _gap(end)
        if offset > end:
            entries[f"{PADDING_PREFIX}{len(entries)}"] = _entry("U8", [offset - end], end, offset)
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return ParamsLayout(header, ordered, len(header) + offset)


def write_params(
    path: Path,
    layout: ParamsLayout,
    checkpoint: CheckpointRef,
    *,
    written: Callable[[int], None],
) -> str:
    """Write the file; its sha256.

    Args:
        path: The file, new.
        layout: What to write.
        checkpoint: What the weights are computed from.
        written: Called with the number of bytes of each block.

    Raises:
        CheckpointError: A file of the checkpoint ends before its tensor does.
        OSError: The file cannot be written.
    """
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as stream:

        def put(block: bytes | memoryview) -> None:
            view = memoryview(block)
            while view:
                view = view[stream.write(view) :]
            digest.update(block)
            written(len(block))

        put(layout.header)
        for name, weight in layout.tensors.items():
            _put_tensor(name, weight, checkpoint, put=put)
            put(bytes(_gap(weight.nbytes)))
    return digest.hexdigest()


def _put_tensor(
    name: str, weight: Weight, checkpoint: CheckpointRef, *, put: Callable[[memoryview], None]
) -> None:
    done = 0
    try:
        for block in chunks(weight, checkpoint.rows):
            # As bytes: the buffer protocol does not know bfloat16.
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            put(data)
            done += len(data)
            del block, data  # or they stay while the next block is evaluated
    except EOFError as error:
        raise CheckpointError(
            f"a weight file is shorter than when it was checked: {error}", where=name
        ) from error
    assert done == weight.nbytes, f"{name}: {done} bytes, expected {weight.nbytes}"


def _gap(end: int) -> int:
    return -end % TENSOR_ALIGNMENT


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"data_offsets": [start, end], "dtype": dtype, "shape": shape}
