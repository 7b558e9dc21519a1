"""Graphs where nothing is rounded."""

import numpy as np
import onnx
import onnx.parser
import pytest
from norm_graph import NORM, numbers, parsed
from program_text import changed, program_from_text

from compiler.numerics.float64 import RoundingCheck, in_float64, widened
from compiler.numerics.reference_run import run_model
from passes.fuse_rms_norm import FuseRMSNorm


def test_float64_widens_constants_casts_and_functions():
    program = program_from_text(NORM)
    assert FuseRMSNorm().run(program).rewrites
    x, weight = numbers(1, 4, 6).astype(np.float64), numbers(6).astype(np.float64)
    found = run_model(in_float64(program.model()), {"x": x, "norm.weight": weight})["y"]
    epsilon = np.float64(np.float32(1e-6))
    wanted = weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    assert found.dtype == np.float64


def test_a_cast_down_is_none_in_float64():
    model = parsed(
        """
        g (float[3] x) => (float[3] y) {
          narrow = Cast <to: int = 10> (x)
          y = Cast <to: int = 1> (narrow)
        }
        """
    )
    x = np.array([1 / 3, 2 / 3, 1e-9])
    np.testing.assert_array_equal(run_model(in_float64(model), {"x": x})["y"], x)


@pytest.mark.parametrize("has_zero_point", [False, True])
@pytest.mark.parametrize("is_made_inside", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_dequantizing(axis: int, is_made_inside: bool, has_zero_point: bool):
    quantized = "turned" if is_made_inside else "w"
    zero = ", zero" if has_zero_point else ""
    model = parsed(
        f"""
        g (int8[3, 3] w, float[3] scale, int8[3] zero) => (float[3, 3] y) {{
          turned = Transpose <perm: ints = [1, 0]> (w)
          y = DequantizeLinear <axis: int = {axis}> ({quantized}, scale{zero})
        }}
        """
    )
    w = np.arange(-4, 5, dtype=np.int8).reshape(3, 3)
    scale, zero_point = np.array([0.1, 0.2, 0.7]), np.array([1, -2, 0], np.int8)
    feeds = widened({"w": w, "scale": scale, "zero": zero_point})
    found = run_model(in_float64(model), feeds)["y"]
    given = (w.T if is_made_inside else w).astype(np.float64)
    wanted_zero, wanted_scale = zero_point * has_zero_point, scale
    if axis in (0, -2):
        wanted_zero, wanted_scale = wanted_zero[:, None], scale[:, None]
    np.testing.assert_array_equal(found, (given - wanted_zero) * wanted_scale)


@pytest.mark.parametrize("axes", ["2, 3", "1, 2, 3"])
@pytest.mark.parametrize("has_zero_point", [False, True])
def test_dequantizing_with_one_scale(has_zero_point: bool, axes: str):
    zero = ", zero" if has_zero_point else ""
    model = parsed(
        f"""
        g (int8[{axes}] w, float scale, int8 zero) => (float[{axes}] y) {{
          y = DequantizeLinear (w, scale{zero})
        }}
        """
    )
    w = np.arange(-3, 3, dtype=np.int8).reshape([int(axis) for axis in axes.split(",")])
    feeds = widened({"w": w, "scale": np.array(0.3), "zero": np.array(2, np.int8)})
    found = run_model(in_float64(model), feeds)["y"]
    np.testing.assert_array_equal(found, (w - 2.0 * has_zero_point) * 0.3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("zeros", [(0, 0, 0), (5, -2, 0)])
def test_what_is_quantized_is_neither_rounded_nor_clamped(axis: int, zeros: tuple[int, ...]):
    model = parsed(
        f"""
        g (float[3, 3] x, float[3] scale) => (int8[3, 3] q, float[3, 3] y) {{
          zero = Constant <value: tensor = int8[3] {{{", ".join(map(str, zeros))}}}> ()
          q = QuantizeLinear <axis: int = {axis}> (x, scale, zero)
          y = DequantizeLinear <axis: int = {axis}> (q, scale, zero)
        }}
        """
    )
    x = np.random.default_rng(2).standard_normal((3, 3)) * 1e3
    scale = np.array([0.1, 0.2, 0.7])
    found = run_model(in_float64(model), {"x": x, "scale": scale})
    column = scale[:, None] if axis == 0 else scale
    zero = np.array(zeros)[:, None] if axis == 0 else np.array(zeros)
    np.testing.assert_array_equal(found["q"], x / column + zero)
    np.testing.assert_allclose(found["y"], x, rtol=1e-12)


def test_int8_that_passes_through_is_float64_all_along():
    model = parsed(
        "g (int8[2] x, bool[2] c) => (int8[2] y) "
        "{ one = Constant <value: tensor = int8 {1}> () y = Where (c, x, one) }"
    )
    feeds = {"x": np.array([0.25, 300.5]), "c": np.array([True, False])}
    found = run_model(in_float64(model), feeds)["y"]
    np.testing.assert_array_equal(found, [0.25, 1.0])


ROUNDED = """
    g (float[1, 2, 3] x, float[2] scale, int8[2] zero) => (float[1, 2, 3] y) {
      codes = QuantizeLinear <axis: int = 1> (x, scale, zero)
      y = DequantizeLinear <axis: int = 1> (codes, scale, zero)
    }
"""


def test_what_is_quantized_to_be_dequantized_is_itself():
    x = np.array([[[0.3, -0.7, 1.6], [0.5, 2.5, -0.1]]])
    feeds = widened({"x": x, "scale": np.array([1.0, 2.0]), "zero": np.array([0, 0], np.int8)})
    np.testing.assert_array_equal(run_model(in_float64(parsed(ROUNDED)), feeds)["y"], x)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(codes, scale, zero)", "(codes, other, zero)"),
        ("y = DequantizeLinear <axis: int = 1>", "y = DequantizeLinear <axis: int = 2>"),
        ("=> (float[1, 2, 3] y)", "=> (float[1, 2, 3] y, int8[1, 2, 3] codes)"),
        ("y = Deq", "z = Neg (codes)\n y = Deq"),
    ],
    ids=["another scale", "another axis", "codes that are an output", "codes that others read"],
)
def test_other_quantizing_is_spelled_out(old: str, new: str):
    text = changed(ROUNDED, {"int8[2] zero)": "int8[2] zero, float[2] other)", old: new})
    operators = [node.op_type for node in in_float64(parsed(text)).graph.node]
    assert {"Div", "Mul"} <= set(operators)
    assert "Identity" not in operators


def narrowed(added: str = "x") -> onnx.ModelProto:
    """x + x in float16, or with something else added."""
    return parsed(
        f"""
        g (float[3] x, float[3] z) => (float[3] y) {{
          a = Cast <to: int = 10> (x)
          b = Cast <to: int = 10> ({added})
          sum = Add (a, b)
          y = Cast <to: int = 1> (sum)
        }}
        """
    )


def test_rounding_alone_is_no_breach_and_all_else_is():
    plain = parsed("g (float[3] x, float[3] z) => (float[3] y) { y = Add (x, x) }")
    x = np.array([1 / 3, 2 / 3, 1e-3], np.float32)
    feeds = {"x": x, "z": x * np.float32(1 + 1e-6)}
    assert RoundingCheck(plain, narrowed()).breach(feeds, feeds, dict) is None
    check = RoundingCheck(plain, narrowed("z"))
    breach = check.breach(feeds, feeds, dict)
    assert breach is not None
    assert breach.said.startswith("in float64, too, y[")
    divergence = check.divergence(feeds, feeds, dict)
    assert divergence is not None
    assert divergence.tensor == "y"


def test_integers_are_not_widened_but_for_int8():
    given = {"ids": np.array([1, 2]), "x": np.ones(2, np.float16), "codes": np.ones(2, np.int8)}
    found = {name: array.dtype.name for name, array in widened(given).items()}
    assert found == {"ids": "int64", "x": "float64", "codes": "float64"}
