"""GPTQ against the paper read literally: a column, its update, one row and column of H^-1 less."""

import numpy as np
import pytest
import torch

from compiler.contracts.errors import CheckpointError, MachineLacks
from compiler.numerics.gptq import gptq
from compiler.numerics.hessian import FactoredHessian, Hessian, check_device, factored

INPUTS, OUTPUTS, TOKENS = 40, 7, 300
TINY = np.finfo(np.float32).tiny


def data(seed: int, inputs: int = INPUTS, tokens: int = TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and correlated inputs of unlike sizes: whole numbers, so that sums are exact."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((OUTPUTS, inputs)).astype(np.float32)
    mixed = random.standard_normal((tokens, inputs)) @ random.standard_normal((inputs, inputs))
    return weight, np.rint(mixed * random.uniform(0.1, 1, inputs)).clip(-60, 60).astype(np.float32)


def hessian_of(rows: np.ndarray, *, act_order: bool, damping: float = 0.01) -> FactoredHessian:
    hessian = Hessian("cpu")
    for block in np.array_split(rows, 3):
        hessian.add(block)
    return factored(hessian.matrix(), damping=damping, act_order=act_order, where="linear")


def naive_scale(columns: np.ndarray, sizes: np.ndarray, largest: int) -> np.ndarray:
    """float32 scale of each row of [out, inputs]; below 8 bits, the best of twenty."""
    whole = (np.abs(columns).max(1).astype(np.float32) / np.float32(largest)).astype(np.float32)
    whole[whole < TINY] = 1
    if largest == 127:
        return whole.astype(np.float64)
    found: list[float] = []
    for row, most in zip(columns, whole.tolist(), strict=True):
        tried = [float(np.float32(most * (1 - 0.6 * step / 19))) for step in range(20)]
        errors = [
            sum(
                size * (w - np.clip(np.rint(w / s), -largest, largest) * s) ** 2
                for w, size in zip(row, sizes, strict=True)
            )
            for s in tried
        ]
        found.append(tried[int(np.argmin(errors))])
    return np.array(found)


def naive_gptq(
    weight: np.ndarray, rows: np.ndarray, *, bits: int, group: int, act_order: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [out, in] and scales [out, in / group], in float64 and with explicit inverses."""
    largest = 2 ** (bits - 1) - 1
    left = weight.astype(np.float64)
    wide = rows.astype(np.float64)
    hessian = 2 / len(wide) * wide.T @ wide
    sizes = np.diagonal(hessian).copy()
    dead = sizes == 0
    damped = hessian + np.diag(np.where(dead, 1.0, 0.01 * sizes.mean()))
    order = np.argsort(-sizes, kind="stable") if act_order else np.arange(len(sizes))
    is_fixed = act_order or group == len(sizes)
    scales = np.stack(
        [
            naive_scale(left[:, low : low + group], sizes[low : low + group], largest)
            for low in range(0, len(sizes), group)
        ],
        axis=1,
    )
    codes = np.zeros(weight.shape)
    inverse = np.linalg.inv(damped)
    for position, column in enumerate(order):
        if not is_fixed and column % group == 0:
            members = slice(column, column + group)
            scales[:, column // group] = naive_scale(left[:, members], sizes[members], largest)
        scale = scales[:, column // group]
        codes[:, column] = np.clip(np.rint(left[:, column] / scale), -largest, largest)
        lost = (left[:, column] - codes[:, column] * scale) / inverse[column, column]
        later = order[position + 1 :]
        left[:, later] -= np.outer(lost, inverse[column, later])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes, scales


def nearest_codes(weight: np.ndarray, *, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rounding to nearest."""
    groups = weight.reshape(len(weight), -1, group)
    scales = np.abs(groups).max(2) / np.float32(2 ** (bits - 1) - 1)
    return np.rint(groups / scales[..., None]).reshape(weight.shape), scales


def error_of(
    weight: np.ndarray, codes: np.ndarray, scales: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Of each output channel: 2/n |X (W - Wq)|^2."""
    group = weight.shape[1] // scales.reshape(len(weight), -1).shape[1]
    off = weight - codes * np.repeat(scales.reshape(len(weight), -1), group, axis=1)
    return 2 / len(rows) * ((rows.astype(np.float64) @ off.T) ** 2).sum(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(8, 40), (4, 40), (8, 8), (4, 8), (4, 20)])
def test_codes_are_those_of_the_paper(bits: int, group: int, act_order: bool, seed: int):
    weight, rows = data(seed)
    wanted, scales = naive_gptq(weight, rows, bits=bits, group=group, act_order=act_order)
    nearest, plain = nearest_codes(weight, bits=bits, group=group)
    keep = error_of(weight, nearest, plain, rows) <= error_of(weight, wanted, scales, rows)
    wanted, scales = (
        np.where(keep[:, None], one, other) for one, other in ((nearest, wanted), (plain, scales))
    )

    found = gptq(weight, hessian_of(rows, act_order=act_order), bits=bits, group=group, name="w")

    assert found.kept == keep.sum() < OUTPUTS / 2
    np.testing.assert_array_equal(found.codes, wanted)
    np.testing.assert_array_equal(found.scales.reshape(scales.shape), scales.astype(np.float32))
    assert found.scales.shape == ((OUTPUTS,) if group == INPUTS else (OUTPUTS, INPUTS // group))
    np.testing.assert_allclose(found.error, error_of(weight, wanted, scales, rows).sum(), rtol=1e-5)
    assert found.error < found.nearest_error < found.energy


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [288, 144, 72, 36])
def test_blocks_of_columns_change_nothing(group: int, act_order: bool):
    """288 columns are three blocks; a group of 144 is two, one of 72 or 36 is a part of one."""
    weight, rows = data(4, inputs=288, tokens=900)
    wanted, _ = naive_gptq(weight, rows, bits=8, group=group, act_order=act_order)
    found = gptq(weight, hessian_of(rows, act_order=act_order), bits=8, group=group, name="w")
    np.testing.assert_array_equal(found.codes, wanted)


def test_errors_are_sums_over_the_calibration_data():
    weight, rows = data(1)
    found = gptq(weight, hessian_of(rows, act_order=True), bits=8, group=INPUTS, name="w")
    nearest, scales = nearest_codes(weight, bits=8, group=INPUTS)
    np.testing.assert_allclose(
        found.nearest_error, error_of(weight, nearest, scales, rows).sum(), rtol=1e-4
    )
    zeros = np.zeros_like(weight)
    np.testing.assert_allclose(found.energy, error_of(weight, zeros, scales, rows).sum(), rtol=1e-5)


def test_a_channel_keeps_nearest_codes_that_are_no_worse():
    """Of a weight of whole codes, rounding to nearest loses nothing."""
    weight, rows = data(2)
    codes = np.random.default_rng(0).integers(-126, 127, INPUTS)
    codes[3] = 127
    weight[2] = codes * 0.125

    found = gptq(weight, hessian_of(rows, act_order=True), bits=8, group=INPUTS, name="w")

    np.testing.assert_array_equal(found.codes[2], codes)
    assert found.scales[2] == 0.125
    assert found.kept == 1
    assert found.error < found.nearest_error


def test_an_input_that_is_always_zero_has_its_weights_rounded_by_themselves():
    weight, rows = data(3)
    rows[:, [0, 11]] = 0
    for act_order in (False, True):
        found = gptq(weight, hessian_of(rows, act_order=act_order), bits=8, group=40, name="w")
        wanted, _ = naive_gptq(weight, rows, bits=8, group=40, act_order=act_order)
        np.testing.assert_array_equal(found.codes, wanted)
        nearest = np.rint(weight / found.scales[:, None])
        np.testing.assert_array_equal(found.codes[:, [0, 11]], nearest[:, [0, 11]])


def test_a_linear_that_reads_nothing_is_rounded_to_nearest():
    weight, rows = data(3)
    found = gptq(weight, hessian_of(rows * 0, act_order=True), bits=8, group=40, name="w")
    assert (found.error, found.energy, found.kept) == (0, 0, OUTPUTS)
    np.testing.assert_array_equal(found.codes, np.rint(weight / found.scales[:, None]))


def test_a_row_of_zeros_has_the_scale_one():
    weight, rows = data(3)
    weight[4] = 0
    for bits in (4, 8):
        found = gptq(weight, hessian_of(rows, act_order=True), bits=bits, group=40, name="w")
        assert found.scales[4] == 1
        assert not found.codes[4].any()


@pytest.mark.parametrize("act_order", [False, True])
def test_damping_grows_until_a_singular_hessian_can_be_factored(act_order: bool):
    """Five tokens tell of five directions among forty."""
    weight, rows = data(0, tokens=5)
    found = hessian_of(rows, act_order=act_order, damping=1e-18)
    assert 1e-18 < found.damping <= 1e-12
    enough = hessian_of(rows, act_order=act_order)
    assert enough.damping == 0.01
    rounded = gptq(weight, enough, bits=8, group=INPUTS, name="w")
    assert rounded.error < rounded.nearest_error


@pytest.mark.parametrize("act_order", [False, True])
def test_the_factor_is_of_the_damped_inverse(act_order: bool):
    _, rows = data(6)
    found = hessian_of(rows, act_order=act_order, damping=0.1)
    assert found.damping == 0.1
    assert bool((found.factor.triu() == found.factor).all())
    shift = 0.1 * torch.diagonal(found.matrix).mean()
    damped = found.matrix + shift * torch.eye(INPUTS, dtype=torch.float64)
    ordered = damped[found.order][:, found.order]
    torch.testing.assert_close(found.factor.T @ found.factor, torch.linalg.inv(ordered))
    sizes = torch.diagonal(found.matrix)[found.order]
    assert bool((sizes.diff() <= 0).all()) == act_order


def test_no_damping_mends_what_is_no_hessian():
    matrix = -torch.eye(4, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="even damped by 1") as caught:
        factored(matrix, damping=0.01, act_order=False, where="model.layers.0.mlp.up_proj")
    assert caught.value.code == "singular-hessian"
    assert caught.value.where == "model.layers.0.mlp.up_proj"
    assert "dataset.nsamples" in (caught.value.hint or "")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(wrong: float):
    _, rows = data(0)
    rows[7, 7] = wrong
    with pytest.raises(CheckpointError, match="holds NaN or infinity") as caught:
        hessian_of(rows, act_order=True)
    assert caught.value.code == "non-finite"


def test_a_weight_that_is_not_finite_is_refused():
    weight, rows = data(0)
    weight[3, 3] = np.nan
    with pytest.raises(CheckpointError, match="row 3 holds NaN or infinity") as caught:
        gptq(weight, hessian_of(rows, act_order=True), bits=8, group=40, name="the.weight")
    assert caught.value.where == "the.weight"


def test_threads_are_as_they_were():
    weight, rows = data(0)
    before = torch.get_num_threads()
    gptq(weight, hessian_of(rows, act_order=True), bits=8, group=INPUTS, name="w")
    assert torch.get_num_threads() == before


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    check_device("cpu", where="model.yaml:9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineLacks, match="no CUDA device here, and cuda is asked") as caught:
        check_device("cuda", where="model.yaml:9")
    assert caught.value.where == "model.yaml:9"
    assert caught.value.hint == "write `device: cpu`"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cuda", where="model.yaml:9")
    check_device("cuda:0", where="model.yaml:9")
    with pytest.raises(MachineLacks, match="1 CUDA devices here, and cuda:1"):
        check_device("cuda:1", where="model.yaml:9")
