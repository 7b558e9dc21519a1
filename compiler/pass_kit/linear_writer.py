"""The norms and linears of a generated block."""

import numpy as np
import onnx_graphsurgeon as gs

from compiler.pass_kit.block_options import BlockOptions, Projection
from compiler.pass_kit.node_writer import NodeWriter


def norm(
    write: NodeWriter, path: str, x: gs.Tensor, width: int, options: BlockOptions
) -> gs.Variable:
    """An RMS norm: x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
    if options.squares == "Pow":
        squares = write.node("Pow", path, x, np.array(2, np.float32))
    else:
        squares = write.node("Mul", path, x, x)
    axes = write.integers(path, -1)
    mean = write.node("ReduceMean", path, squares, axes, attrs={"keepdims": 1})
    shifted = write.commutative("Add", path, mean, np.array(options.epsilon, np.float32))
    root = write.node("Sqrt", path, shifted)
    if options.inverse == "Reciprocal":
        inverse = write.node("Reciprocal", path, root)
    else:
        inverse = write.node("Div", path, np.array(1, np.float32), root)
    scaled = write.commutative("Mul", path, x, inverse)
    return write.commutative("Mul", path, write.parameter(f"{path}.weight", (width,)), scaled)


def linear(
    write: NodeWriter,
    path: str,
    x: gs.Tensor,
    sizes: tuple[int, int],
    options: BlockOptions,
    *,
    projection: Projection,
) -> gs.Variable:
    """A linear, x W + b; an int8 weight goes through DequantizeLinear, a scale for each output."""
    outputs, inputs = sizes
    if projection in options.quantized:
        stored = write.matrix(f"{path}.weight", outputs, inputs, dtype="int8")
        scale = write.parameter(f"{path}.weight_scale", (outputs,))
        weight = write.node("DequantizeLinear", path, stored, scale, attrs={"axis": 1})
    else:
        weight = write.matrix(f"{path}.weight", outputs, inputs)
    product = write.node("MatMul", path, x, weight)
    if projection not in options.biases:
        return product
    return write.commutative("Add", path, product, write.parameter(f"{path}.bias", (outputs,)))
