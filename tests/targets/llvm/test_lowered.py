"""Programs on TVM's own operators, against the same programs on onnxruntime."""

from collections.abc import Iterator

import numpy as np
import pytest
from program_runs import run_pass
from staged_models import POINTS, observed, staged
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import TargetError
from compiler.contracts.taps import Tap
from compiler.contracts.target_base import ProgramModel, TargetOptions
from passes.insert_strided_slice import InsertStridedSlice
from targets.llvm.features import detect
from targets.llvm.lowered import LoweredRunner
from targets.llvm.target import LLVMTarget
from targets.onnxruntime.runner import OnnxRuntimeRunner

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT).tolist()


def opened(model: ProgramModel) -> LoweredRunner:
    return LoweredRunner(model, features=detect(), threads=1)


@pytest.fixture(
    params=[
        "llvm",
        "all",
        "int8",
        "stored bfloat16",
        "bfloat16",
        "float16",
        "int8 cache",
        "bfloat16 cache",
        "packed int8",
        "packed bfloat16",
    ],
    scope="module",
)
def runners(
    request: pytest.FixtureRequest, traced_models: TracedModels
) -> Iterator[tuple[LoweredRunner, OnnxRuntimeRunner, float]]:
    """Both, and what they may differ by."""
    limits = {"bfloat16": 0.1, "packed bfloat16": 0.1, "float16": 1e-2}
    limit = limits.get(request.param, 1e-4)
    model = staged(traced_models, "gqa", POINTS[request.param])
    ours, theirs = opened(model), OnnxRuntimeRunner(model)
    yield ours, theirs, limit
    ours.close()
    theirs.close()


@pytest.mark.slow
def test_logits_and_taps_are_onnxruntimes(
    runners: tuple[LoweredRunner, OnnxRuntimeRunner, float],
) -> None:
    ours, theirs, limit = runners
    assert (ours.window, ours.context, ours.layers) == (
        theirs.window,
        theirs.context,
        theirs.layers,
    )
    assert ours.vocabulary == theirs.vocabulary
    for runner in runners[:2]:
        runner.rewind(0)
    for call in (TOKENS[:WINDOW], TOKENS[WINDOW : WINDOW + 5], TOKENS[WINDOW + 5 : WINDOW + 6]):
        logits, found = observed(ours, call)
        _, wanted = observed(theirs, call)
        assert list(found) == list(wanted)
        for tap, rows in wanted.items():
            assert (found[tap].dtype, found[tap].shape) == (np.float32, rows.shape)
            np.testing.assert_allclose(found[tap], rows, rtol=0, atol=limit * np.abs(rows).max())
        np.testing.assert_array_equal(logits, found[Tap(None, "logits")][0])
    for layer in range(ours.layers):
        pairs = (runner.cache_rows(layer, 2, WINDOW + 6) for runner in runners[:2])
        for one, other in zip(*pairs, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=limit * np.abs(other).max())


@pytest.mark.slow
def test_watching_changes_no_bit(
    runners: tuple[LoweredRunner, OnnxRuntimeRunner, float],
) -> None:
    ours = runners[0]
    for call in (TOKENS[:5], TOKENS[5:6]):
        ours.rewind(0 if len(call) > 1 else 5)
        alone = ours.extend(call)
        ours.rewind(ours.length - len(call))
        np.testing.assert_array_equal(observed(ours, call)[0], alone)


@pytest.mark.slow
def test_nothing_can_be_replaced(
    runners: tuple[LoweredRunner, OnnxRuntimeRunner, float],
) -> None:
    ours = runners[0]
    ours.rewind(0)
    tap = Tap(1, "norm1")
    rows = observed(ours, TOKENS[:3])[1][tap]
    ours.rewind(0)
    with pytest.raises(TargetError, match=r"layers\.1/norm1 cannot be replaced"):
        observed(ours, TOKENS[:3], {tap: rows})
    ours.observe(None)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["all", "last"])
def test_other_rows_of_logits(traced_models: TracedModels, position: str) -> None:
    passes = [one for one in POINTS["llvm"] if one.name != "insert-strided-slice"]
    model = staged(traced_models, "gqa", passes)
    if position == "last":
        for program in model.programs:
            run_pass(InsertStridedSlice(position="last"), program)
    ours, theirs = opened(model), OnnxRuntimeRunner(model)
    for call in (TOKENS[:WINDOW], TOKENS[WINDOW : WINDOW + 3]):
        wanted = theirs.extend(call)
        np.testing.assert_allclose(ours.extend(call), wanted, rtol=0, atol=1e-4)


def test_a_program_that_cannot_be_lowered_is_refused(traced_models: TracedModels) -> None:
    model = staged(traced_models, "gqa", POINTS["trace"])
    options = TargetOptions("fp32", WINDOW, CONTEXT)
    with pytest.raises(TargetError, match="is symbolic"):
        LLVMTarget().open_lowered(model, options)
