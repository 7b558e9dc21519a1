"""Values of weight expressions, a block of rows at a time.

    for block in chunks(weight, checkpoint.rows): ...

Memory holds a few blocks, whatever the size of the weight.
"""

from collections.abc import Callable, Iterator

import numpy as np

from compiler.contracts.int8_scales import int8_scales
from compiler.contracts.weights import DTYPES, PACKED_OUTPUTS, Weight

# name, start, stop -> rows start:stop of a checkpoint tensor
RowReader = Callable[[str, int, int], np.ndarray]
# Evaluation reads and writes in blocks of at most this many bytes.
CHUNK_BYTES = 64 * 1024 * 1024


def rows(weight: Weight, read: RowReader, start: int, stop: int) -> np.ndarray:
    """Rows `start:stop` of the first axis of `weight`, [stop - start, *shape[1:]]."""
    match weight.op:
        case "source" | "file":
            return read(str(weight.attributes[0]), start, stop)
        case "zeros":
            return np.zeros((stop - start, *weight.shape[1:]), DTYPES[weight.dtype])
        case "cast":
            with np.errstate(over="ignore"):  # an overflow to infinity is the declared dtype's
                return rows(weight.operands[0], read, start, stop).astype(DTYPES[weight.dtype])
        case "transpose":
            blocks = chunks(weight.operands[0], read, limit=CHUNK_BYTES // 4)
            return np.concatenate([block[:, start:stop].T.copy() for block in blocks], axis=1)
        case "concat":
            return _concat_rows(weight, read, start, stop)
        case "slice":
            axis, low, high = (int(attribute) for attribute in weight.attributes)
            if axis == 0:
                return rows(weight.operands[0], read, start + low, stop + low)
            block = rows(weight.operands[0], read, start, stop)
            return block[(slice(None),) * axis + (slice(low, high),)]
        case "quantize" | "scale":
            return _quantized_rows(weight, read, start, stop)
        case "pack":
            return _packed_rows(weight, read, start, stop)
        case _:
            raise AssertionError(f"weight operator {weight.op}")


def chunks(weight: Weight, read: RowReader, *, limit: int = CHUNK_BYTES) -> Iterator[np.ndarray]:
    """The whole value in order, in blocks of rows of at most `limit` bytes (one row at least)."""
    row_bytes = max(1, weight.nbytes // max(1, weight.shape[0]))
    step = max(1, limit // row_bytes)
    for start in range(0, weight.shape[0], step):
        yield rows(weight, read, start, min(start + step, weight.shape[0]))


def value(weight: Weight, read: RowReader) -> np.ndarray:
    """The whole value at once, for small tensors and tests."""
    return rows(weight, read, 0, weight.shape[0])


def _concat_rows(weight: Weight, read: RowReader, start: int, stop: int) -> np.ndarray:
    found: list[np.ndarray] = []
    base = 0
    for part in weight.operands:
        low, high = max(start - base, 0), min(stop - base, part.shape[0])
        if low < high:
            found.append(rows(part, read, low, high))
        base += part.shape[0]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _quantized_rows(weight: Weight, read: RowReader, start: int, stop: int) -> np.ndarray:
    """Rows of `quantize` or `scale`: float32 of a quarter of a chunk at a time."""
    (operand,) = weight.operands
    bits, group = (int(attribute) for attribute in weight.attributes or (8, 0))
    columns = operand.shape[1]
    group = group or columns
    result = np.empty((stop - start, *weight.shape[1:]), DTYPES[weight.dtype])
    step = max(1, CHUNK_BYTES // 4 // (columns * DTYPES["float32"].itemsize))
    for low in range(start, stop, step):
        high = min(low + step, stop)
        block = rows(operand, read, low, high).astype(np.float32, copy=False).reshape(-1, group)
        first = low * (columns // group)
        scales = int8_scales(block, bits=bits, tensors=operand.sources(), first_row=first)
        found = scales if weight.op == "scale" else np.rint(block / scales[:, None])
        result[low - start : high - start] = found.reshape(high - low, *weight.shape[1:])
    return result


def _packed_rows(weight: Weight, read: RowReader, start: int, stop: int) -> np.ndarray:
    """Blocks of 32 outputs; every row of the operand is read once."""
    (operand,) = weight.operands
    _, steps, tiles, depth, columns, pair = weight.shape
    padded = np.zeros(((stop - start) * PACKED_OUTPUTS, steps * depth * pair), DTYPES[weight.dtype])
    first, last = start * PACKED_OUTPUTS, min(stop * PACKED_OUTPUTS, operand.shape[0])
    padded[: last - first, : operand.shape[1]] = rows(operand, read, first, last)
    split = padded.reshape(stop - start, tiles, columns, steps, depth, pair)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2, 5))
