"""16-bit arithmetic in float32: each operator rounds once, whatever onnxruntime has kernels for."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import ModelProto

from compiler.numerics.half_precision import spelled_in_float32
from compiler.numerics.reference_run import run_model

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
RANDOM = np.random.default_rng(2).standard_normal((2, 4, 4)).astype(np.float32)


def model(text: str) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')


def in_and_out(dtype: str, body: str) -> ModelProto:
    """float a and b narrowed, `body` makes y of x and z, y widened."""
    to = {"float16": 10, "bfloat16": 16}[dtype]
    return model(
        f"main (float[4, 4] a, float[4, 4] b) => (float[N, M] wide)\n{{\n"
        f"x = Cast <to: int = {to}> (a)\nz = Cast <to: int = {to}> (b)\n{body}\n"
        "wide = Cast <to: int = 1> (y)\n}"
    )


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(DTYPES[dtype]).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("body", "compute"),
    [
        ("y = Add (x, z)", lambda a, b: a + b),
        ("y = Sub (x, z)", lambda a, b: a - b),
        ("y = Mul (x, z)", lambda a, b: a * b),
        ("y = Neg (x)", lambda a, _b: -a),
        ("y = MatMul (x, z)", lambda a, b: a @ b),
        ("y = Sigmoid (x)", lambda a, _b: 1 / (1 + np.exp(-a.astype(np.float64)))),
    ],
)
def test_each_operator_rounds_its_result_once(
    dtype: str, body: str, compute: Callable[[np.ndarray, np.ndarray], np.ndarray]
):
    a, b = rounded(RANDOM, dtype)
    spelled = spelled_in_float32(in_and_out(dtype, body))
    onnx.checker.check_model(spelled, full_check=True)
    (found,) = run_model(spelled, {"a": a, "b": b}).values()
    np.testing.assert_array_equal(found, rounded(compute(a, b), dtype))
    assert not np.array_equal(found, compute(a, b)) or "Neg" in body


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_rounds_in_between(dtype: str):
    a, b = rounded(RANDOM, dtype)
    spelled = spelled_in_float32(
        in_and_out(dtype, "s = Add (x, z)\nt = Transpose (s)\ny = Mul (t, x)")
    )
    (found,) = run_model(spelled, {"a": a, "b": b}).values()
    np.testing.assert_array_equal(found, rounded(rounded(a + b, dtype).T * a, dtype))


def test_a_function_that_computes_in_its_input_s_type_is_taken_apart():
    text = """
      main (bfloat16[4, 4] x, float[4, 4] w) => (float[4, 4] wide, bfloat16[4, 4] y)
      {
        [call] y = own.Product (x, w)
        [wide] wide = Cast <to: int = 1> (y)
      }
      <domain: "own", opset_import: ["": 20]>
      Product (x, w) => (y)
      {
        narrow = CastLike (w, x)
        y = MatMul (x, narrow)
      }
    """
    given = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20, "own": 1]>\n{text}')
    a, b = RANDOM
    x = a.astype(ml_dtypes.bfloat16)
    found = run_model(given, {"x": x, "w": b})
    wanted = rounded(x.astype(np.float32) @ rounded(b, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(found["wide"], wanted)
    np.testing.assert_array_equal(found["y"], wanted)


def test_a_model_without_16_bits_is_itself():
    plain = model("main (float[4, 4] a) => (float[4, 4] y) { y = Add (a, a) }")
    assert spelled_in_float32(plain) is plain


def test_a_model_that_is_spelled_already_is_not_changed():
    spelled = spelled_in_float32(in_and_out("bfloat16", "y = Add (x, z)"))
    again = spelled_in_float32(spelled)
    assert again.SerializeToString() == spelled.SerializeToString()
