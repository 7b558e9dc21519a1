"""Angles are repeated before their cosine is taken."""

import pytest
from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract
from passes.widen_angles import WidenAngles

CHECKS = PassChecks(WidenAngles())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("rotary/Concat", "rotary/Concat_1", "rotary/Concat_2")
    assert report.skips == ()


def test_the_same_numbers():
    CHECKS.assert_numbers()


DECLINED = {
    "cosine beside sine": (
        {"(cosine, again)": "(cosine, sine)"},
        "it joins rotary/Cos with something else",
    ),
    "cosines of other angles": (
        {"(cosine, again)": "(cosine, other)"},
        "it joins rotary/Cos with something else",
    ),
    "a cosine beside its angle": (
        {"(cosine, again)": "(cosine, f)"},
        "it joins rotary/Cos with something else",
    ),
    "another axis": (
        {"a = Concat <axis: int = -1>": "a = Concat <axis: int = 1>", "4, 6] a": "8, 3] a"},
        "it joins on axis 1, expected -1",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_another_concat_is_declined(case: str):
    replaced, reason = DECLINED[case]
    replaced = {**replaced}
    if "other)" in "".join(replaced.values()):
        replaced['["rotary/Concat"]'] = '["rotary/Cos_3"] other = Cos (g)\n  ["rotary/Concat"]'
        replaced['["rotary/Cos_2"] other = Cos (g)'] = ""
    report = CHECKS.on(replaced)
    assert {skip.node: skip.reason for skip in report.skips} == {"rotary/Concat": reason}
    assert report.rewrites == ("rotary/Concat_1", "rotary/Concat_2")


def test_options():
    assert WidenAngles().promise() == Contract.close(rtol=1e-6, atol=1e-6)
    assert WidenAngles.phases == ("prefill", "decode")
