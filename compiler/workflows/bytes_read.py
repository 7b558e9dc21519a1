"""What a decode step must at least read of a bundle: its weights, and the cache so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from compiler.checkpoints.safetensors_header import tensors_in
from compiler.contracts.bundle import Bundle, ModuleEntry
from compiler.contracts.weights import DTYPES, StoredTensor

_STORED: Mapping[str, str] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
}
# Of this parameter a step reads the row of its token, unless the head is the same tensor.
_TABLE = "model.embed_tokens."


@dataclass(frozen=True)
class BytesRead:
    """Of all ranks together.

    Attributes:
        weights: Every weight once; of an embedding that is not the head, one row.
        cache_row: Keys and values of a position, in every layer, their scales included.
    """

    weights: int
    cache_row: int

    def at(self, past: int) -> int:
        """Bytes of a step that attends to `past` tokens and its own."""
        return self.weights + (past + 1) * self.cache_row


def bytes_read(bundle: Bundle) -> BytesRead | None:
    """From the headers of its parameter files; None where the bundle does not decode.

    Raises:
        CheckpointError: A parameter file is damaged.
    """
    entries = [entry for entry in bundle.manifest.modules if entry.phase == "decode"]
    if not entries:
        return None
    weights = sum(_weights(entry, _tensors(bundle, entry)) for entry in entries)
    return BytesRead(weights, sum(_cache_row(entry) for entry in entries))


def _tensors(bundle: Bundle, entry: ModuleEntry) -> Mapping[str, StoredTensor]:
    return tensors_in(bundle.params_file(entry), dtypes=_STORED) if entry.params else {}


def _weights(entry: ModuleEntry, tensors: Mapping[str, StoredTensor]) -> int:
    """Parameters of one tensor are read once."""
    names = [name for name in entry.params if not name.startswith(_TABLE)]
    whole = {entry.stored[name] for name in names}
    tables = {entry.stored[name] for name in entry.params} - whole
    rows = sum(tensors[name].nbytes // tensors[name].shape[0] for name in tables)
    return rows + sum(tensors[name].nbytes for name in whole)


def _cache_row(entry: ModuleEntry) -> int:
    """The first axis of a cache is the position."""
    caches = [spec for spec in entry.inputs if spec.name in entry.aliases.values()]
    sizes = (
        prod(int(axis) for axis in spec.shape[1:]) * DTYPES[spec.dtype].itemsize for spec in caches
    )
    return sum(sizes) // _slots(entry)


def _slots(entry: ModuleEntry) -> int:
    """Prompts that a step serves: it has a column of `input_ids` and caches for each."""
    ids = next(spec for spec in entry.inputs if spec.name == "input_ids")
    return int(ids.shape[-1]) // entry.tokens
