"""Greedy, temperature and nucleus: which tokens can be drawn, how often, and again the same."""

import numpy as np
import pytest

from compiler.sampling import Sampler, _nucleus

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(sampler: Sampler, logits: np.ndarray, count: int) -> list[int]:
    return [sampler.pick(logits) for _ in range(count)]


def test_greedy_takes_the_largest_and_the_lowest_id_on_a_tie() -> None:
    sampler = Sampler()
    assert sampler.pick(np.array([1, 5, 5, 2], np.float32)) == 1
    assert sampler.pick(np.array([-np.inf, -3, -2, -np.inf], np.float32)) == 2


def test_equal_seeds_draw_the_same_and_others_do_not() -> None:
    first = draws(Sampler(temperature=1.0, seed=7), LOGITS, 50)
    assert first == draws(Sampler(temperature=1.0, seed=7), LOGITS, 50)
    assert first != draws(Sampler(temperature=1.0, seed=8), LOGITS, 50)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.1, 0.4, 0.2, 0.3]), (0.5, [1 / 30, 16 / 30, 4 / 30, 9 / 30])],
)
def test_frequencies_are_the_softmax_at_the_temperature(
    temperature: float, expected: list[float]
) -> None:
    counts = np.bincount(draws(Sampler(temperature=temperature, seed=1), LOGITS, 20_000))
    np.testing.assert_allclose(counts / 20_000, expected, atol=0.012)


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(0.05, {1}), (0.39, {1}), (0.5, {1, 3}), (0.69, {1, 3}), (0.85, {1, 2, 3}), (1, {0, 1, 2, 3})],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    top_p: float, nucleus: set[int]
) -> None:
    assert set(draws(Sampler(temperature=1.0, top_p=top_p, seed=3), LOGITS, 2_000)) == nucleus


def test_the_nucleus_is_renormalised() -> None:
    counts = np.bincount(draws(Sampler(temperature=1.0, top_p=0.5, seed=5), LOGITS, 20_000))
    assert counts[1] / 20_000 == pytest.approx(4 / 7, abs=0.012)


def test_tokens_of_equal_probability_enter_the_nucleus_by_id() -> None:
    even = np.tile(np.array([0, 1], np.float32), 200)
    drawn = set(draws(Sampler(temperature=1.0, top_p=0.01, seed=0), even, 500))
    assert drawn == {1, 3, 5}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_what_has_no_probability_is_never_drawn(top_p: float) -> None:
    masked = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    assert set(draws(Sampler(temperature=2.0, top_p=top_p, seed=0), masked, 500)) == {1, 3}


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert set(draws(Sampler(temperature=temperature, seed=0), LOGITS, 50)) == {1}


def test_large_logits_do_not_overflow() -> None:
    assert set(draws(Sampler(temperature=1.0), np.array([3e38, -3e38], np.float32), 20)) == {0}


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.9, 0.9999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_sorting_it(
    top_p: float, scale: float
) -> None:
    logits = np.round(np.random.default_rng(0).standard_normal(3000) * scale, 1).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")
    sums = np.cumsum(probabilities[order])
    expected = order[: int(np.searchsorted(sums, top_p)) + 1]
    np.testing.assert_array_equal(_nucleus(probabilities, top_p), expected)
