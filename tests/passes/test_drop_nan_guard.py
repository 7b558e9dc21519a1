"""A guard against NaN goes where the mask is finite, and stays where it may be needed."""

import pytest
from pass_checks import PassChecks
from program_runs import reasons
from program_text import Golden

from compiler.contracts.pass_base import Contract
from passes.drop_nan_guard import DropNaNGuard

CHECKS = PassChecks(DropNaNGuard())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("attn/Where_1",)
    assert report.skips == ()


def test_the_same_numbers():
    CHECKS.assert_numbers()


DECLINED = {
    "an infinite mask": (
        {
            "float lowest = {-1e30}": "float huge = {-1e30}",
            '["attn/Where"]': '["attn/Mul"] lowest = Mul (huge, huge)\n  ["attn/Where"]',
        },
        "attn/Softmax has no mask of finite constants",
    ),
    "no mask": (
        {"Softmax <axis: int = -1> (masked)": "Softmax <axis: int = -1> (scores)"},
        "attn/Softmax has no mask of finite constants",
    ),
    "another value instead": (
        {"Where (bad, zero, weights)": "Where (bad, lowest, weights)"},
        "it does not replace NaN of weights by zero",
    ),
    "another tensor is kept": (
        {"Where (bad, zero, weights)": "Where (bad, zero, masked)"},
        "it does not replace NaN of weights by zero",
    ),
    "no softmax": (
        {"Softmax <axis: int = -1> (masked)": "Exp (masked)"},
        "weights is not made by a Softmax",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_a_guard_that_may_be_needed_stays(case: str):
    replaced, reason = DECLINED[case]
    assert reasons(CHECKS.on(replaced)) == {"attn/Where_1": reason}


def test_options():
    assert DropNaNGuard().promise() == Contract.exact()
    assert DropNaNGuard.phases == ("prefill", "decode")
