"""What is said of a pass that the build runs itself."""

import pytest

from compiler.contracts.errors import CheckFailed, PassError
from compiler.own_pass import at_fault, saying
from passes.fold_batch import FoldBatch


@pytest.mark.parametrize("kind", [PassError, CheckFailed])
def test_an_error_names_the_pass_the_phase_and_who_asked(kind: type[PassError]):
    with (
        pytest.raises(kind) as caught,
        saying(FoldBatch(batch=2), "decode", place="model.yaml:7:12"),
    ):
        raise kind("it differs", where="elsewhere", hint="mend it", code="unlike")
    error = caught.value
    assert error.message == "pass 'fold-batch' on decode: it differs"
    assert (error.where, error.hint, error.code) == ("model.yaml:7:12", "mend it", "unlike")


def test_a_pass_at_fault_is_for_its_author():
    assert at_fault("left nothing").hint == "the pass is at fault: report it to its author"
