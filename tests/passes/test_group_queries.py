"""Repeated key and value heads become an axis of their queries."""

import pytest
from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract
from passes.group_queries import GroupQueries

CHECKS = PassChecks(GroupQueries())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("l0/Softmax", "l1/Softmax")
    assert report.skips == ()


def test_the_same_numbers():
    CHECKS.assert_numbers(rtol=1e-5, atol=1e-6)


DECLINED = {
    "scores without a scale": (
        {"scores = Mul (products, scale)": "scores = Identity (products)"},
        "its scores are not Add(Mul(MatMul, scale), mask)",
    ),
    "keys that are not turned": (
        {
            "kt = Transpose <perm: ints = [0, 1, 3, 2]> (kh)": "kt = Reshape (kh, across)",
            "float scale": "int64[4] across = {1, 6, 8, -1}, float scale",
        },
        "l0/MatMul does not read keys through a Transpose of their last axes",
    ),
    "weights that are read twice": (
        {
            "y = MatMul (weights, vh)": (
                'y1 = MatMul (weights, vh)\n  ["l0/Mul_1"] w = Mul (weights, weights)\n'
                '  ["l0/MatMul_2"] y2 = MatMul (w, vh)\n  ["l0/Add_1"] y = Add (y1, y2)'
            )
        },
        "its weights are not read by one product",
    ),
    "heads repeated as a whole": (
        {
            'k5 = Unsqueeze (keys, group)\n  ["l0/Expand"] ks = Expand (k5, times)': (
                "ks = Concat <axis: int = 1> (keys, keys, keys)"
            )
        },
        "l0/Reshape does not merge heads repeated by Unsqueeze and Expand",
    ),
    "keys and values in groups of another size": (
        {
            '["l0/Unsqueeze_1"]': '["l0/Concat_1"] six = Concat <axis: int = 1> '
            '(values, values, values)\n  ["l0/Unsqueeze_1"]',
            "y = MatMul (weights, vh)": "y = MatMul (weights, six)",
        },
        "l0/MatMul reads queries of shape [1, 6, 4, 8]",
    ),
    "a mask for each head": (
        {"float[1, 1, 4, s] mask": "float[1, 6, 4, s] mask"},
        "l0/Add adds a mask of [1, 6, 4, None], expected [1, 1, 4, ..]",
    ),
    "a mask of unknown rank": (
        {
            "float[1, 1, 4, s] mask,": "float[1, 1, 4, s] mask0, int64[rank] given,",
            '["l0/Add"]': '["l0/Expand_2"] mask = Reshape (mask0, given)\n  ["l0/Add"]',
        },
        "l0/Add adds a mask of unknown rank",
    ),
    "queries of unknown length": (
        {"float[1, 6, 4, 8] q,": "float[1, 6, t, 8] q,"},
        "l0/MatMul reads queries or keys of unknown shape",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_another_attention_is_declined(case: str):
    replaced, reason = DECLINED[case]
    report = CHECKS.on(replaced)
    assert {skip.node: skip.reason for skip in report.skips} == {"l0/Softmax": reason}
    assert report.rewrites == ("l1/Softmax",)


def test_options():
    assert GroupQueries().promise() == Contract.close(rtol=1e-5, atol=1e-5)
    assert GroupQueries.after == ("place-scale", "drop-nan-guard", "state-reshapes")
