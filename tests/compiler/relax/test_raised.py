"""What a function raises that TVM calls."""

import pytest

from compiler.relax.raised import Raised


def fail(error: BaseException) -> None:
    raise error


def call_from_elsewhere(raised: Raised, error: BaseException) -> None:
    """As a foreign runtime: it turns whatever is raised into an error of its own."""
    try:
        with raised.kept():
            fail(error)
    except BaseException:
        raise RuntimeError("a frame of the runtime") from None


@pytest.mark.parametrize("error", [ValueError("it"), KeyboardInterrupt()])
def test_what_a_called_function_raised_comes_back_as_it_was(error: BaseException):
    raised = Raised()
    with pytest.raises(type(error)) as caught, raised.restored():
        call_from_elsewhere(raised, error)
    assert caught.value is error


def test_what_the_runtime_itself_raises_is_left_as_it_is():
    raised = Raised()
    with pytest.raises(ValueError, match="it"), raised.restored():
        call_from_elsewhere(raised, ValueError("it"))
    with pytest.raises(RuntimeError, match="of its own"), raised.restored():
        raise RuntimeError("of its own")


def test_nothing_is_kept_from_a_call_before():
    raised = Raised()
    with pytest.raises(ValueError, match="caught inside"), raised.kept():
        raise ValueError("caught inside")
    with pytest.raises(RuntimeError, match="of its own"), raised.restored():
        raise RuntimeError("of its own")
