"""Weights by reference: where a checkpoint's bytes lie, and expressions over them.

A `Weight` is a lazy expression over checkpoint tensors with a known shape and dtype. Passes compose
expressions and read no byte; packaging evaluates them a block of rows at a time, so that memory
does not grow with the model:

    cast(transpose(source("model.layers.0.mlp.up_proj.weight", (16, 8), "bfloat16")), "float32")

An int8 weight is two expressions over one matrix W, whose rows are the output channels: `scale(W)`,
float32 [rows], and `quantize(W)`, int8 [rows, columns], with W close to scale * quantized:

    scale = absmax of the row / 127         quantized = round(W / scale), half to even

Both are computed in float32. A row whose scale would be zero or subnormal (absmax below 1.5e-36) is
zeros with the scale 1. NaN and infinity have no int8: evaluating them is a CheckpointError. With
`bits=4` the codes are within [-7, 7], still in int8; with `group=g` each stretch of g columns of a
row has a scale of its own, and `scale(W)` is [rows, columns / g].

A calibrated weight (`calibrated`) is a tensor that a file holds in place of an expression's value;
it keeps the expression, so that it is known what it stands for. A packed one (`pack`) is a matrix
in the tiles of a matrix unit; nothing is computed from it.

Two parameters with equal `key` are the same bytes and are stored once.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}

# Every value of these is a float32.
_NARROW = ("float16", "bfloat16")
# A tile has 16 rows of 16 columns of 4 bytes; a column is an output. Two tiles lie together.
TILE, PACKED_OUTPUTS, COLUMN_BYTES = 16, 32, 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a file: `nbytes` bytes at `offset`, row-major, little-endian."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of the first axis, read with pread (a mapped read stays resident)."""
        row_shape = self.shape[1:]
        row_bytes = prod(row_shape) * DTYPES[self.dtype].itemsize
        data = bytearray((stop - start) * row_bytes)
        view = memoryview(data)
        with self.file.open("rb", buffering=0) as stream:
            done = 0
            while done < len(data):
                count = os.preadv(
                    stream.fileno(), [view[done:]], self.offset + start * row_bytes + done
                )
                if count == 0:
                    raise EOFError(f"{self.file} ends before byte {self.offset + len(data)}")
                done += count
        return np.frombuffer(data, dtype=DTYPES[self.dtype]).reshape(stop - start, *row_shape)


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint whose tensors were located and checked, and not read.

    Attributes:
        path: The Hugging Face folder (for a GGUF file, the converted folder in the user's cache).
        config: `config.json` as parsed.
        tensors: Every tensor by its Hugging Face name.
        digest: sha256 over config.json and the content of every weight file.
    """

    path: Path
    config: Mapping[str, object]
    tensors: Mapping[str, StoredTensor]
    digest: str

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of tensor `name`."""
        return self.tensors[name].rows(start, stop)


@dataclass(frozen=True)
class Weight:
    """An expression over checkpoint tensors. Built by the functions below, never by hand.

    Attributes:
        op: `source`, `zeros`, `transpose`, `cast`, `concat`, `slice`, `quantize`, `scale`, `file`
            or `pack`.
        shape: Shape of the result.
        dtype: One of `DTYPES`.
        operands: What it is computed from.
        attributes: The tensor's name (source, file), the shape (zeros), the axis and bounds
            (slice), bits and group where they are not 8 and 0 (quantize, scale).
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    operands: tuple["Weight", ...] = ()
    attributes: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        packed = next((operand.key for operand in self.operands if operand.op == "pack"), None)
        assert packed is None, f"{self.op} of {packed}: packing comes last"

    @property
    def key(self) -> str:
        """The expression as text: `cast(model.norm.weight, bfloat16)`."""
        if self.op == "source":
            return str(self.attributes[0])
        if self.op == "file":
            return f"file({self.attributes[0]})"
        dtype = (self.dtype,) if self.op in ("cast", "zeros") else ()
        parts = [operand.key for operand in self.operands]
        return f"{self.op}({', '.join([*parts, *map(str, self.attributes + dtype)])})"

    @property
    def nbytes(self) -> int:
        """Size of the result in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def sources(self) -> tuple[str, ...]:
        """Names of the checkpoint tensors that it reads, in order, possibly repeated."""
        if self.op == "source":
            return (str(self.attributes[0]),)
        return tuple(name for operand in self.operands for name in operand.sources())


def source(name: str, shape: tuple[int, ...], dtype: str) -> Weight:
    """A checkpoint tensor as it is."""
    assert dtype in DTYPES, f"{name} has dtype {dtype}"
    return Weight("source", tuple(shape), dtype, attributes=(name,))


def zeros(shape: tuple[int, ...], dtype: str) -> Weight:
    """Zeros, which no checkpoint holds: padding, joined to what it pads by `concat`."""
    assert dtype in DTYPES, f"zeros of dtype {dtype}"
    return Weight("zeros", tuple(shape), dtype, attributes=tuple(shape))


def transpose(operand: Weight) -> Weight:
    """[a, b] -> [b, a]; a transpose of a transpose, cast or not, is what was transposed."""
    assert len(operand.shape) == 2, f"transpose of {operand.shape}"
    if operand.op == "transpose":
        return operand.operands[0]
    if operand.op == "cast" and operand.operands[0].op == "transpose":
        return cast(transpose(operand.operands[0]), operand.dtype)
    return Weight("transpose", operand.shape[::-1], operand.dtype, (operand,))


def cast(operand: Weight, dtype: str) -> Weight:
    """To another float type, rounding to nearest even.

    To its own dtype it is the operand; a cast of a widening to float32 skips it, which is exact.
    A cast of a concat is a concat of casts, each of which may come to nothing.
    """
    assert dtype in DTYPES, f"cast to {dtype}"
    if operand.op == "concat":
        return concat([cast(part, dtype) for part in operand.operands])
    if operand.op == "zeros":
        return zeros(operand.shape, dtype)
    if operand.op == "cast" and operand.dtype == "float32" and operand.operands[0].dtype in _NARROW:
        operand = operand.operands[0]
    return operand if operand.dtype == dtype else Weight("cast", operand.shape, dtype, (operand,))


def concat(parts: Sequence[Weight]) -> Weight:
    """Rows of several weights, one after the other (first axis)."""
    assert len({(part.shape[1:], part.dtype) for part in parts}) == 1, "concat of unlike parts"
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Weight("concat", shape, parts[0].dtype, tuple(parts))


def cut(operand: Weight, axis: int, start: int, stop: int) -> Weight:
    """`operand[start:stop]` on one axis; the whole axis is the operand.

    A cut of what is transposed, cast, joined or cut is made of cuts of its operands, so that no
    more is read than is kept and the same rows are the same expression. A cut of codes stays
    outside: along a row they depend on all of it.
    """
    size = operand.shape[axis]
    assert 0 <= start < stop <= size, f"slice {start}:{stop} of {size}"
    if (start, stop) == (0, size):
        return operand
    shape = (*operand.shape[:axis], stop - start, *operand.shape[axis + 1 :])
    match operand.op:
        case "zeros":
            return zeros(shape, operand.dtype)
        case "cast":
            return cast(cut(operand.operands[0], axis, start, stop), operand.dtype)
        case "transpose":
            return transpose(cut(operand.operands[0], 1 - axis, start, stop))
        case "concat":
            return _cut_of_concat(operand, axis, start, stop)
        case "slice" if operand.attributes[0] == axis:
            low = int(operand.attributes[1])
            return cut(operand.operands[0], axis, low + start, low + stop)
        case _:
            return Weight("slice", shape, operand.dtype, (operand,), (axis, start, stop))


def _cut_of_concat(operand: Weight, axis: int, start: int, stop: int) -> Weight:
    if axis != 0:
        return concat([cut(part, axis, start, stop) for part in operand.operands])
    found: list[Weight] = []
    base = 0
    for part in operand.operands:
        low, high = max(start - base, 0), min(stop - base, part.shape[0])
        if low < high:
            found.append(cut(part, 0, low, high))
        base += part.shape[0]
    return found[0] if len(found) == 1 else concat(found)


def quantize(operand: Weight, *, axis: int, bits: int = 8, group: int = 0) -> Weight:
    """int8 of `operand`'s shape, symmetric with one scale for each index of `axis`.

    Args:
        operand: A matrix of floats.
        axis: Of the output channels: 0 for [out, in], 1 for [in, out].
        bits: Of a code, 8 or 4.
        group: Inputs that share a scale, a divisor of their number; 0 for all of a channel.
    """
    if axis == 1:
        return transpose(quantize(transpose(operand), axis=0, bits=bits, group=group))
    return _by_channel("quantize", operand, bits, group)


def scale(operand: Weight, *, axis: int, bits: int = 8, group: int = 0) -> Weight:
    """The float32 scales of `quantize` with the same arguments: [out], or [out, in / group]."""
    return _by_channel("scale", operand if axis == 0 else transpose(operand), bits, group)


def calibrated(operand: Weight, name: str) -> Weight:
    """What tensor `name` holds in place of `operand`'s value, in its shape and dtype.

    Args:
        operand: The expression that it stands for.
        name: As the row reader knows it; it names the content, for it is the weight's key.
    """
    return Weight("file", operand.shape, operand.dtype, (operand,), (name,))


def pack(operand: Weight) -> Weight:
    """[out, in] of int8 or 16-bit floats -> [ceil(out / 32), ceil(in / 16 q), 2, 16, 16, q].

        P[n, k, t, r, c, i] = W[32 n + 16 t + c, 16 q k + q r + i]        q = 4 bytes / itemsize

    and zero past the end of either axis: tiles [r, c, i] as AMX's TDPBF16PS and TDPBSSD multiply
    them (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2).
    """
    assert len(operand.shape) == 2, f"pack of {operand.shape}"
    assert operand.dtype in ("int8", *_NARROW), f"pack of {operand.dtype}"
    depth = COLUMN_BYTES // DTYPES[operand.dtype].itemsize
    blocks = (-(-operand.shape[0] // PACKED_OUTPUTS), -(-operand.shape[1] // (TILE * depth)))
    shape = (*blocks, PACKED_OUTPUTS // TILE, TILE, TILE, depth)
    return Weight("pack", shape, operand.dtype, (operand,))


def unpacked(weight: Weight) -> Weight:
    """What is packed; a weight that is not, itself."""
    return weight.operands[0] if weight.op == "pack" else weight


def _by_channel(op: str, operand: Weight, bits: int, group: int) -> Weight:
    """A row depends on no other row: parts are quantized each, and widening changes nothing."""
    assert len(operand.shape) == 2, f"{op} of {operand.shape}"
    assert operand.dtype in ("float32", *_NARROW), f"{op} of {operand.dtype}"
    assert group == 0 or operand.shape[1] % group == 0, f"groups of {group} in {operand.shape}"
    if operand.op == "cast" and operand.dtype == "float32" and operand.operands[0].dtype in _NARROW:
        operand = operand.operands[0]
    if operand.op == "concat":
        return concat([_by_channel(op, part, bits, group) for part in operand.operands])
    attributes = () if (bits, group) == (8, 0) else (bits, group)
    if op == "quantize":
        return Weight(op, operand.shape, "int8", (operand,), attributes)
    groups = (operand.shape[1] // group,) if group else ()
    return Weight(op, (operand.shape[0], *groups), "float32", (operand,), attributes)
