"""An RMS norm as ONNX text, and numbers for it."""

import numpy as np
import onnx


def parsed(
    body: str, *, header: str = '<ir_version: 10, opset_import: ["" : 20]>'
) -> onnx.ModelProto:
    """A model of the graph that `body` spells."""
    return onnx.parser.parse_model(f"{header}\n{body}")


NORM = """
norm (float[1, 4, 6] x, float[6] "norm.weight") => (float[1, 4, 6] y)
<float two = {2}, int64[1] last = {-1}, float eps = {1e-6}>
{
  ["Pow"] squares = Pow (x, two)
  ["ReduceMean"] mean = ReduceMean <keepdims: int = 1> (squares, last)
  ["Add"] shifted = Add (mean, eps)
  ["Sqrt"] root = Sqrt (shifted)
  ["Reciprocal"] inverse = Reciprocal (root)
  ["Mul"] scaled = Mul (x, inverse)
  ["Mul_1"] y = Mul ("norm.weight", scaled)
}
"""


def numbers(*shape: int) -> np.ndarray:
    """Seeded normal numbers, float32."""
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
