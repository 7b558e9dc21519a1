"""The product with an int8 weight, scaled by channel or by group, against float64."""

import numpy as np
import pytest

from targets.llvm.features import from_names, llvm_target
from targets.llvm.kernels.linear import linear

# (rows, outputs, inputs, group): decode, few rows, prefill; outputs and inputs that fill no vector,
# stretches of inputs; groups of whole vectors, of half a one, of four, three and one inputs.
_CASES = [
    (1, 64, 128, 0),
    (1, 37, 100, 0),
    (3, 19, 33, 0),
    (4, 5, 7, 0),
    (17, 40, 20, 0),
    (128, 16, 72, 0),
    (100, 33, 2050, 0),
    (1, 64, 128, 32),
    (1, 37, 96, 16),
    (1, 9, 320, 64),
    (2, 19, 40, 8),
    (3, 5, 40, 20),
    (4, 7, 33, 3),
    (1, 3, 6, 1),
    (1, 24, 48, 48),
    (17, 40, 64, 32),
    (48, 9, 40, 8),
    (33, 5, 60, 20),
    (20, 3, 33, 3),
    (128, 24, 2112, 64),
]
_UNIT = 2.0**-24


@pytest.mark.parametrize(("rows", "outputs", "inputs", "group"), _CASES)
def test_matches_float64(features, execute, rng, rows, outputs, inputs, group):
    has_bias = outputs % 2 == 1
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    codes = rng.integers(-127, 128, (outputs, inputs), dtype=np.int8)
    shape = (outputs, inputs // group) if group else (outputs,)
    scale = rng.uniform(0.5, 2.0, shape).astype(np.float32) / 127
    bias = rng.standard_normal(outputs, dtype=np.float32)
    y = np.full((rows, outputs), np.nan, np.float32)
    func = linear(
        rows,
        outputs,
        inputs=inputs,
        weight_dtype="int8",
        has_bias=has_bias,
        features=features,
        group=group,
    )

    *_, got = execute(func, [x, codes, scale, *([bias] if has_bias else []), y])

    wide = codes * scale.astype(np.float64).reshape(outputs, -1).repeat(group or inputs, axis=1)
    expected = x.astype(np.float64) @ wide.T + (bias if has_bias else 0)
    # As in test_linear.py, with two roundings more for the scale.
    bound = (inputs + 4) * _UNIT * (np.abs(x).astype(np.float64) @ np.abs(wide).T + np.abs(bias))
    assert np.all(np.abs(got - expected) <= bound)
    assert np.max(np.abs(got - expected)) <= 8 * _UNIT * (inputs + 4)


@pytest.mark.parametrize("group", [0, 64])
def test_one_row_is_widened_by_vectors(group: int):
    """Decode's speed is that of its loads: sixteen codes by one instruction, none by itself."""
    import tvm

    level = from_names(["avx2", "avx512f", "avx512bw", "avx512vl", "fma"])
    func = linear(
        1, 64, inputs=256, weight_dtype="int8", has_bias=False, features=level, group=group
    )
    module = tvm.compile(
        tvm.IRModule({"main": func}), target=tvm.target.Target(llvm_target(level, threads=2))
    )
    code = module.mod.inspect_source("asm")
    assert code.count("vpmovsxbd") >= 8
    assert "movsbl" not in code
    assert "vpmovsxbd\t(" in code or "vpmovsxbd\t16(" in code
