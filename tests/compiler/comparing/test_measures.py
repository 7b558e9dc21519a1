"""The measures against numbers worked out by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from compiler.comparing.measures import (
    compare_tensors,
    is_near_tie,
    log_softmax,
    next_token_kl,
    top2_margin,
    top5_overlap,
)
from compiler.contracts.comparison import Measures


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def measures(reference: np.ndarray, candidate: np.ndarray) -> Measures:
    status, found = compare_tensors(reference, candidate)
    assert status is None
    return found


# -- tensors


def test_each_measure_by_hand():
    # Differences 0, -2, 1; powers 3 * 3 + 4 * 4 = 25 and 9 + 4 + 1 = 14; noise 4 + 1 = 5.
    found = measures(f32(3, -4, 0), f32(3, -2, -1))
    assert found.max_abs == 2.0
    assert found.mean_abs == 1.0
    assert found.max_rel == 0.5
    assert found.cosine == pytest.approx(17 / math.sqrt(25 * 14), rel=1e-15)
    assert found.snr_db == pytest.approx(10 * math.log10(25 / 5), rel=1e-15)


def test_the_scale_is_the_references():
    assert measures(f32(1, 2), f32(1, 8)).max_rel == 3.0
    assert measures(f32(1, 8), f32(1, 2)).max_rel == 0.75
    assert measures(f32(-8, 1), f32(-2, 1)).max_rel == 0.75


def test_equal_tensors():
    values = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    found = measures(values, values.copy())
    assert (found.max_abs, found.mean_abs, found.max_rel) == (0.0, 0.0, 0.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-15)
    assert found.snr_db == math.inf


def test_the_arithmetic_is_float64():
    # In float32 the difference is lost beside 1, and the square of 1e30 is infinite.
    assert measures(f32(1, 2**-30), f32(1, 0)).mean_abs == 2.0**-31
    found = measures(f32(1e30), f32(-1e30))
    assert (found.max_rel, found.cosine) == (2.0, -1.0)
    assert math.isfinite(found.snr_db)


def test_zeros():
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert measures(zeros, zeros) == Measures(0.0, 0.0, 0.0, 1.0, math.inf)
    assert measures(zeros, ones) == Measures(1.0, 1.0, 1.0, 0.0, -math.inf)
    assert measures(ones, zeros) == Measures(1.0, 1.0, 1.0, 0.0, 0.0)
    assert measures(zeros[:0], zeros[:0]) == Measures(0.0, 0.0, 0.0, 1.0, math.inf)


@pytest.mark.parametrize(
    ("reference", "candidate", "status"),
    [
        (f32(1, 2), f32(1), "shape"),
        (f32(1, 2)[None], f32(1, 2), "shape"),
        (f32(1, 2), f32(1, 2).astype(np.float16), "dtype"),
        (f32(1, np.nan), f32(1, np.nan), "nan"),
        (f32(1, 2), f32(1, np.nan), "nan"),
        (f32(np.nan, 2), f32(1, 2), "nan"),
        (f32(np.inf, np.nan), f32(1, 2), "nan"),
        (f32(1, 2), f32(1, -np.inf), "infinite"),
        (f32(1, np.inf), f32(1, 2), "infinite"),
        (f32(1, np.inf), f32(1, -np.inf), "infinite"),
        (f32(-np.inf, 1), f32(1, -np.inf), "infinite"),
    ],
)
def test_what_makes_a_comparison_meaningless(
    reference: np.ndarray, candidate: np.ndarray, status: str
):
    found, numbers = compare_tensors(reference, candidate)
    assert found == status
    assert np.isnan(
        [
            numbers.max_abs,
            numbers.mean_abs,
            numbers.max_rel,
            numbers.cosine,
            numbers.snr_db,
        ]
    ).all()


def test_equal_infinities_are_left_out():
    found = measures(f32(-np.inf, 3, -4, 0, np.inf), f32(-np.inf, 3, -2, -1, np.inf))
    assert found == measures(f32(3, -4, 0), f32(3, -2, -1))
    assert measures(f32(-np.inf), f32(-np.inf)).max_abs == 0.0


def test_large_tensors_are_read_in_blocks():
    rows = np.random.default_rng(0).standard_normal((1500, 1001)).astype(np.float32)
    other = rows + np.float32(0.5)
    other[0, 0] = rows[0, 0] - 5  # in the first block
    other[-1, -1] = rows[-1, -1] - 3  # in the last one, which is not full
    wide, given = rows.astype(np.float64), other.astype(np.float64)
    tracemalloc.start()
    found = measures(rows, other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert found.max_abs == pytest.approx(5.0, abs=1e-6)
    assert found.mean_abs == pytest.approx(np.abs(wide - given).mean(), rel=1e-12)
    assert found.max_rel == pytest.approx(found.max_abs / np.abs(wide).max(), rel=1e-12)
    norms = np.linalg.norm(wide) * np.linalg.norm(given)
    assert found.cosine == pytest.approx((wide * given).sum() / norms, rel=1e-12)
    noise = ((wide - given) ** 2).sum()
    assert found.snr_db == pytest.approx(10 * np.log10((wide**2).sum() / noise), rel=1e-12)
    other[-1, -1] = np.nan
    assert compare_tensors(rows, other)[0] == "nan"
    other[-1, -1] = np.inf
    assert compare_tensors(rows, other)[0] == "infinite"


# -- distributions


def test_the_divergence_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4).
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    given = np.log(np.array([0.25, 0.75]))
    assert next_token_kl(np.zeros(2), given) == pytest.approx(wanted, rel=1e-14)
    other = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert next_token_kl(given, np.zeros(2)) == pytest.approx(other, rel=1e-14)


def test_the_divergence_of_large_and_of_shifted_logits():
    assert next_token_kl(f32(1000, 0), f32(0, 1000)) == pytest.approx(1000.0)
    assert next_token_kl(f32(5, 3, -80), f32(105, 103, 20)) == 0.0


def test_the_divergence_of_masked_tokens():
    masked = f32(0, 0, -np.inf)
    assert next_token_kl(masked, masked) == 0.0
    assert next_token_kl(masked, f32(0, 0, 0)) == pytest.approx(math.log(1.5))
    assert next_token_kl(f32(0, 0, 0), masked) == math.inf
    assert math.isnan(next_token_kl(f32(0, np.nan), f32(0, 0)))
    assert math.isnan(next_token_kl(f32(0, np.inf), f32(0, np.inf)))


def test_the_divergence_is_at_most_half_the_square_of_the_error():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((50, 40)) * 5
    for error in (1e-3, 0.1, 2.0):
        others = logits + generator.uniform(-error, error, logits.shape)
        found = [next_token_kl(*pair) for pair in zip(logits, others, strict=True)]
        assert 0 < max(found) <= error**2 / 2


def test_log_softmax():
    found = log_softmax(f32(1000, 1000, -np.inf))
    assert found.dtype == np.float64
    assert found.tolist() == [-math.log(2), -math.log(2), -math.inf]


@pytest.mark.parametrize(
    ("reference", "candidate", "share"),
    [
        (f32(9, 8, 7, 6, 5, 0, 0, 0), f32(5, 6, 7, 8, 9, 0, 0, 0), 1.0),
        (f32(9, 8, 7, 6, 5, 0, 0, 0), f32(9, 8, 7, 6, 4, 5, 0, 0), 0.8),
        (f32(9, 8, 7, 6, 5, 0, 0, 0), f32(0, 0, 7, 0, 0, 9, 8, 8), 0.4),  # the tie goes to id 0
        (f32(2, 1), f32(1, 2), 1.0),
    ],
)
def test_the_overlap_of_the_five_first(reference: np.ndarray, candidate: np.ndarray, share: float):
    assert top5_overlap(reference, candidate) == share


def test_ties_in_the_five_first_go_to_the_lowest_id():
    flat, first, last = np.zeros(10), f32(*[1] * 5, *[0] * 5), f32(*[0] * 5, *[1] * 5)
    assert top5_overlap(flat, first) == 1.0
    assert top5_overlap(flat, last) == 0.0


def test_the_margin():
    assert top2_margin(f32(1, 5, 3.5, -9)) == 1.5
    assert top2_margin(f32(5, 5, 0)) == 0.0
    assert top2_margin(f32(5, -np.inf)) == math.inf
    assert top2_margin(f32(5)) == math.inf


def test_a_near_tie_is_below_twice_the_error():
    assert is_near_tie(0.199, 0.1)
    assert not is_near_tie(0.2, 0.1)
    assert not is_near_tie(0.0, 0.0)
