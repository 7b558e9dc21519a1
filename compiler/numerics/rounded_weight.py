"""What codes stand for: the floats that rounding to nearest leaves of a weight.

transpose(concat([quantize(A), quantize(B, bits=4, group=64)]))  ->  [A' | B'] in that layout
"""

import numpy as np

from compiler.contracts.weight_values import RowReader, value
from compiler.contracts.weights import Weight
from compiler.numerics.quantized_weights import scales_of


def rounded_weight(codes: Weight, read: RowReader) -> np.ndarray:
    """Codes times scales as float32, in the codes' shape; a calibrated weight counts as rounded.

    Raises:
        CheckpointError: A row holds NaN or infinity.
    """
    match codes.op:
        case "quantize":
            return _rounded(codes, read)
        case "file":
            return rounded_weight(codes.operands[0], read)
        case "transpose":
            return rounded_weight(codes.operands[0], read).T
        case "concat":
            return np.concatenate([rounded_weight(part, read) for part in codes.operands])
        case "slice":
            axis, start, stop = (int(attribute) for attribute in codes.attributes)
            whole = rounded_weight(codes.operands[0], read)
            return whole[(slice(None),) * axis + (slice(start, stop),)]
        case _:  # padding
            return value(codes, read).astype(np.float32)


def _rounded(codes: Weight, read: RowReader) -> np.ndarray:
    scales = value(scales_of(codes), read).reshape(-1, 1)
    steps = value(codes, read).astype(np.float32).reshape(len(scales), -1)
    return (steps * scales).reshape(codes.shape)
