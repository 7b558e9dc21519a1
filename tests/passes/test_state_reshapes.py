"""Reshapes say what they make, as far as it is known."""

from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract
from passes.state_reshapes import StateReshapes

CHECKS = PassChecks(StateReshapes())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("a/Reshape", "b/Reshape")
    assert report.skips == ()


def test_the_same_numbers():
    CHECKS.assert_numbers()


def test_options():
    assert StateReshapes().promise() == Contract.exact()
    assert StateReshapes.after == ("fold-shapes", "fold-constants")
