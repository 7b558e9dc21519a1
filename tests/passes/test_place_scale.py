"""Scores are scaled once, after their product."""

import pytest
from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract
from passes.place_scale import PlaceScale

CHECKS = PassChecks(PlaceScale())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("attn0/MatMul", "attn1/MatMul")
    assert report.skips == ()


def test_the_same_numbers():
    CHECKS.assert_numbers(rtol=1e-6, atol=1e-7)


def test_a_scale_of_each_feature_is_declined():
    report = CHECKS.on({"float root = {0.5}": "float[8] root = {1, 2, 3, 4, 5, 6, 7, 8}"})
    assert {skip.node: skip.reason for skip in report.skips} == {
        "attn0/MatMul": "attn0/Mul scales by (8,)",
        "attn1/MatMul": "attn1/Mul scales by (8,)",
    }


@pytest.mark.parametrize(
    "replaced",
    [
        {"scores = MatMul (small_q, small_k)": "scores = MatMul (q, k)"},
        {"masked = Add (scores, mask)": "masked = Sub (scores, mask)"},
    ],
    ids=["nothing scales", "no sum with a mask"],
)
def test_another_product_is_no_candidate(replaced: dict[str, str]):
    report = CHECKS.on(replaced)
    assert report.rewrites == ("attn1/MatMul",)
    assert report.skips == ()


def test_options():
    assert PlaceScale().promise() == Contract.close(rtol=1e-5, atol=1e-5)
    assert PlaceScale.after == ("restore-transpose",)
