"""Steps add up to the whole difference; what gives no numbers is the step that did so first."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from compiler.contracts.comparison import LadderStep
from compiler.stages.ladder import ladder_steps, largest_step

STEPS, VOCABULARY = 5, 17


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(STEPS, VOCABULARY)).astype(np.float32)


def climbed(*rungs: np.ndarray) -> list[LadderStep]:
    """The first is the reference."""
    reads = [partial(np.copy, rung) for rung in rungs]
    return ladder_steps(reads[0], [(f"rung{i}", read) for i, read in enumerate(reads[1:], 1)])


def shares(steps: Sequence[LadderStep]) -> list[float]:
    return [step.share for step in steps]


def test_steps_of_one_direction_have_the_shares_of_their_sizes() -> None:
    first, way = drawn(0), drawn(1)
    steps = climbed(first, first + way, first + 4 * way)
    assert [step.name for step in steps] == ["rung1", "rung2"]
    assert shares(steps) == pytest.approx([0.25, 0.75], rel=1e-5)
    assert steps[1].rms == pytest.approx(
        3 * np.sqrt(np.mean(way.astype(np.float64) ** 2)), rel=1e-5
    )
    assert steps[1].max_abs == pytest.approx(3 * np.abs(way).max(), rel=1e-5)
    assert steps[1].total_max_abs == pytest.approx(4 * np.abs(way).max(), rel=1e-5)
    assert steps[0].total_max_abs == steps[0].max_abs


@pytest.mark.parametrize("seed", range(4))
def test_shares_add_up(seed: int) -> None:
    steps = climbed(*(drawn(10 * seed + number) for number in range(5)))
    assert sum(shares(steps)) == pytest.approx(1.0, rel=1e-12)


def test_a_step_that_undoes_another_has_a_negative_share() -> None:
    first, way = drawn(0), drawn(1)
    steps = climbed(first, first + 3 * way, first + way)
    assert shares(steps) == pytest.approx([3.0, -2.0], rel=1e-5)
    assert sum(shares(steps)) == pytest.approx(1.0, rel=1e-12)
    assert largest_step(steps) == 0


def test_nothing_differs() -> None:
    same = drawn(0)
    steps = climbed(same, same, same)
    assert shares(steps) == [0.0, 0.0]
    assert {(step.max_abs, step.rms, step.total_max_abs, step.kl) for step in steps} == {
        (0.0, 0.0, 0.0, 0.0)
    }
    assert largest_step(steps) == 0


def test_what_differed_is_undone_in_the_end() -> None:
    """The whole is nothing: no share of it can be said, and the sizes still are."""
    steps = climbed(drawn(0), drawn(1), drawn(0))
    assert shares(steps) == [0.0, 0.0]
    assert steps[0].rms == steps[1].rms > 0
    assert steps[1].total_max_abs == 0.0


def test_the_divergence_is_from_the_first() -> None:
    first = drawn(0)
    # The same distribution: a constant more in every logit.
    steps = climbed(first, first + np.float32(1), 2 * first)
    assert steps[0].kl == pytest.approx(0.0, abs=1e-12)
    assert steps[0].max_abs == pytest.approx(1.0, rel=1e-5)
    logits = first.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    q = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    assert steps[1].kl == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_step_that_gives_no_numbers_is_the_largest(value: float) -> None:
    spoiled = drawn(2)
    spoiled[3, 5] = value
    steps = climbed(drawn(0), 100 * drawn(1), spoiled, spoiled)
    assert largest_step(steps) == 1
    assert math.isfinite(steps[0].rms)
    assert not math.isfinite(steps[1].rms)
    assert not math.isfinite(steps[1].max_abs)
    assert all(not math.isfinite(share) for share in shares(steps)[1:])


def test_no_numbers_on_the_way_leave_the_whole_known() -> None:
    spoiled = drawn(2)
    spoiled[0, 0] = math.nan
    steps = climbed(drawn(0), spoiled, drawn(1))
    assert largest_step(steps) == 0
    assert math.isnan(steps[0].share)
    assert steps[1].total_max_abs == pytest.approx(np.abs(drawn(1) - drawn(0)).max(), rel=1e-6)


def test_the_largest_is_by_root_mean_square() -> None:
    """One logit that is far off weighs less than all that are off by a little."""
    first = drawn(0)
    far = first.copy()
    far[0, 0] += 3
    steps = climbed(first, far, far + 1)
    assert steps[0].max_abs > steps[1].max_abs
    assert largest_step(steps) == 1
