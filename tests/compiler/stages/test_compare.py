"""Trajectories and measures between two runners, with stand-ins whose logits are known."""

from collections.abc import Sequence

import numpy as np
import pytest

from compiler.contracts.comparison import Comparison, Divergence
from compiler.contracts.target_base import Runner
from compiler.stages.compare import (
    Limits,
    Trajectory,
    compare_trajectories,
    decode_forced,
    decode_greedily,
    measure,
)

LIMITS = Limits(max_abs=0.1, max_rel=0.05, min_cosine=0.9, min_top1=1.0, min_greedy=1.0)


class Successor(Runner):
    """Says the token after the last one it read, louder by how many it has read."""

    vocabulary = 8

    def __init__(self, context: int = 32, *, wrong_at: int | None = None) -> None:
        self.context = context
        self.read: list[int] = []
        self.calls: list[list[int]] = []
        self._wrong_at = wrong_at

    def rewind(self, length: int) -> None:
        super().rewind(length)
        del self.read[length:]

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        self.calls.append(list(tokens))
        self.read += tokens
        self.length += len(tokens)
        step = 2 if self.length == self._wrong_at else 1
        logits = np.zeros(self.vocabulary, np.float32)
        logits[(self.read[-1] + step) % self.vocabulary] = self.length
        return logits


# -- trajectories


def test_greedy_decoding_feeds_what_it_chose():
    runner = Successor()
    found = decode_greedily(runner, [3, 4], 3)
    assert found.tokens == (5, 6, 7)
    assert found.logits.shape == (3, 8)
    assert found.logits.max(axis=1).tolist() == [2, 3, 4]
    assert runner.calls == [[3, 4], [5], [6]]


def test_every_decoding_starts_over():
    runner = Successor()
    first = decode_greedily(runner, [1], 4)
    again = decode_greedily(runner, [1], 4)
    assert first.tokens == again.tokens == (2, 3, 4, 5)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert decode_forced(runner, [1], [2, 3]).max(axis=1).tolist() == [1, 2]


def test_greedy_decoding_ends_with_the_context():
    assert decode_greedily(Successor(context=4), [1, 2], 10).tokens == (3, 4, 5)
    assert decode_greedily(Successor(context=2), [1, 2], 10).tokens == (3,)


def test_a_tie_goes_to_the_lowest_id():
    class Tied(Successor):
        def extend(self, tokens: Sequence[int]) -> np.ndarray:
            super().extend(tokens)
            return np.array([0, 0, 5, 1, 5, 0, 0, 0], np.float32)

    assert decode_greedily(Tied(), [1], 2).tokens == (2, 2)


def test_forced_decoding_feeds_the_given_tokens():
    runner = Successor()
    found = decode_forced(runner, [3, 4], [0, 0, 6])
    assert runner.calls == [[3, 4], [0], [0]]
    assert found.argmax(axis=1).tolist() == [5, 1, 1]


# -- measures


def measured(reference: np.ndarray, candidate: np.ndarray, limits: Limits = LIMITS):
    return measure("prompt0/step0/logits", reference, candidate, limits)


def test_equal_tensors():
    values = np.array([1.0, -2.0, 3.0], np.float32)
    found = measured(values, values.copy())
    assert (found.name, found.status) == ("prompt0/step0/logits", "pass")
    assert (found.max_abs, found.max_rel) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1.0)


def test_the_three_measures():
    found = measured(np.array([3.0, -4.0], np.float32), np.array([3.0, -3.0], np.float32))
    assert found.max_abs == 1.0
    assert found.max_rel == 0.25
    assert found.cosine == pytest.approx(21 / (5 * 18**0.5))
    assert found.status == "fail"


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (Limits(max_abs=1.0, max_rel=0.25, min_cosine=0.98, min_top1=1, min_greedy=1), "pass"),
        (Limits(max_abs=0.99, max_rel=0.25, min_cosine=0.98, min_top1=1, min_greedy=1), "fail"),
        (Limits(max_abs=1.0, max_rel=0.24, min_cosine=0.98, min_top1=1, min_greedy=1), "fail"),
        (Limits(max_abs=1.0, max_rel=0.25, min_cosine=0.991, min_top1=1, min_greedy=1), "fail"),
    ],
)
def test_each_limit_decides(limits: Limits, status: str):
    found = measured(np.array([3.0, -4.0], np.float32), np.array([3.0, -3.0], np.float32), limits)
    assert found.status == status


@pytest.mark.parametrize(
    ("reference", "candidate", "status"),
    [
        ([1.0, 2.0], [1.0], "shape"),
        ([[1.0, 2.0]], [1.0, 2.0], "shape"),
        ([1.0, np.nan], [1.0, np.nan], "nan"),
        ([1.0, 2.0], [1.0, np.nan], "nan"),
        ([np.nan, 2.0], [1.0, 2.0], "nan"),
        ([1.0, np.inf], [1.0, np.inf], "infinite"),
        ([1.0, 2.0], [1.0, -np.inf], "infinite"),
        ([np.nan, 2.0], [np.inf, 2.0], "nan"),
    ],
)
def test_what_makes_a_comparison_meaningless(reference: list, candidate: list, status: str):
    found = measured(np.array(reference, np.float32), np.array(candidate, np.float32))
    assert found.status == status
    assert np.isnan([found.max_abs, found.max_rel, found.cosine]).all()


def test_another_dtype_is_a_status_of_its_own():
    assert measured(np.zeros(2, np.float32), np.zeros(2, np.float16)).status == "dtype"


def test_zeros():
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    same, other = measured(zeros, zeros), measured(zeros, ones)
    assert (same.status, same.max_rel, same.cosine) == ("pass", 0.0, 1.0)
    assert (other.status, other.max_rel, other.cosine) == ("fail", 1.0, 0.0)


# -- the comparison


def compared(
    reference: Runner, candidate: Runner, prompts: Sequence[Sequence[int]], limits: Limits = LIMITS
) -> Comparison:
    references = [decode_greedily(reference, prompt, 4) for prompt in prompts]
    forced = [
        decode_forced(candidate, prompt, one.tokens)
        for prompt, one in zip(prompts, references, strict=True)
    ]
    free = [decode_greedily(candidate, prompt, 4).tokens for prompt in prompts]
    return compare_trajectories(("torch", "tvm_llvm"), references, forced, free=free, limits=limits)


def test_equal_runners():
    found = compared(Successor(), Successor(), [[1], [2, 3]])
    assert [tensor.name for tensor in found.tensors] == [
        f"prompt{prompt}/step{step}/logits" for prompt in range(2) for step in range(4)
    ]
    assert {tensor.status for tensor in found.tensors} == {"pass"}
    assert (found.top1_agreement, found.greedy_agreement) == (1.0, 1.0)
    assert found.first_divergence is None
    assert found.passed
    assert (found.reference, found.candidate, found.level) == ("torch", "tvm_llvm", "end-to-end")


def test_a_wrong_token_is_found_where_it_happens():
    # The second prompt reaches a length of 4 at its third step.
    found = compared(Successor(), Successor(wrong_at=4), [[1], [2, 3]])
    assert found.first_divergence == Divergence(prompt=0, step=3, reference=5, candidate=6)
    assert [tensor.name for tensor in found.tensors if tensor.status == "fail"] == [
        "prompt0/step3/logits",
        "prompt1/step2/logits",
    ]
    # Teacher-forced, a mistake costs its own step; free-running, all that follows.
    assert found.top1_agreement == 6 / 8
    assert found.greedy_agreement == 5 / 8
    assert not found.passed


def test_shares_have_limits_of_their_own():
    loose = Limits(max_abs=99, max_rel=99, min_cosine=-1, min_top1=0.75, min_greedy=0.625)
    assert compared(Successor(), Successor(wrong_at=4), [[1], [2, 3]], loose).passed
    for strict in (
        Limits(max_abs=99, max_rel=99, min_cosine=-1, min_top1=0.76, min_greedy=0.625),
        Limits(max_abs=99, max_rel=99, min_cosine=-1, min_top1=0.75, min_greedy=0.63),
    ):
        found = compared(Successor(), Successor(wrong_at=4), [[1], [2, 3]], strict)
        assert {tensor.status for tensor in found.tensors} == {"pass"}
        assert not found.passed


def test_nothing_compared_is_a_failure():
    found = compare_trajectories(("a", "b"), [], [], free=[], limits=LIMITS)
    assert (found.tensors, found.top1_agreement, found.greedy_agreement) == ((), 0.0, 0.0)
    assert not found.passed


def test_a_candidate_that_stops_early_does_not_agree():
    one = Trajectory((1, 2, 3, 4), np.eye(4, 8, dtype=np.float32) + 1)
    found = compare_trajectories(("a", "b"), [one], [one.logits], free=[(1, 2)], limits=LIMITS)
    assert found.greedy_agreement == 0.5
    assert not found.passed
