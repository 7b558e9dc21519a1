"""Equal nodes become one."""

import pytest
from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract, Skip
from passes.merge_equal import MergeEqual

CHECKS = PassChecks(MergeEqual())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("l1/Add", "l1/Exp")
    assert report.skips == (Skip("q/Mul", "equal to p/Mul, but its output is the graph's"),)


def test_the_same_numbers():
    CHECKS.assert_numbers()


@pytest.mark.parametrize(
    "replaced",
    [
        {"b = Add (x, same)": "b = Sub (x, same)"},
        {"b = Add (x, same)": "b = Add (x, two)"},
        {"b = Add (x, same)": "b = Add (y, same)"},
        {"b = Add (x, same)": "b = Add (same, x)"},
        {
            "a = Add (x, one)": "a = LeakyRelu <alpha: float = 0.1> (x)",
            "b = Add (x, same)": "b = LeakyRelu <alpha: float = 0.2> (x)",
        },
        {
            "a = Add (x, one)": "a = RandomNormalLike (x)",
            "b = Add (x, same)": "b = RandomNormalLike (x)",
        },
    ],
    ids=["operator", "constant", "input", "order", "attribute", "random"],
)
def test_what_differs_is_left_alone(replaced: dict[str, str]):
    report = CHECKS.on(replaced)
    assert "l1/Add" not in report.rewrites
    assert "l1/Exp" not in report.rewrites


def test_options():
    assert MergeEqual().promise() == Contract.exact()
    assert MergeEqual.after == ("fold-constants",)
