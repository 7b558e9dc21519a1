"""A phase of a probe, followed through the passes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from traced_models import TracedModels

from compiler.contracts.errors import CheckFailed
from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport
from compiler.contracts.program import Phase, Program
from compiler.numerics.measured_pass import MeasuredPhase
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.insert_strided_slice import InsertStridedSlice
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

PIPELINE = (FoldConstants(), FoldMask(), PlanKVCache(), InsertStridedSlice(), StoreWeights())


def followed(
    traced_models: TracedModels, phase: Phase = "prefill"
) -> tuple[MeasuredPhase, Program]:
    probe = traced_models.probe("own-head-dim")
    program = probe.programs.programs[phase]
    return MeasuredPhase(program, probe.read, vocabulary=probe.vocabulary), program


@dataclass(frozen=True)
class Scaled(Pass):
    """Multiplies the logits by a factor, and promises what it is told to."""

    name: ClassVar = "scaled"
    contract: ClassVar = Contract.close(rtol=1e-3, atol=0.0)
    factor: float = 1.0

    def run(self, program: Program) -> PassReport:
        logits = next(t for t in program.graph.outputs if t.name == "logits")
        (made,) = logits.inputs
        plain = gs.Variable("plain", np.dtype(np.float32), logits.shape)
        made.outputs[0] = plain
        factor = gs.Constant("factor", np.array(self.factor, np.float32))
        program.graph.nodes.append(
            gs.Node("Mul", "lm_head/Mul", inputs=[plain, factor], outputs=[logits])
        )
        return PassReport(("lm_head/Mul",))


@dataclass(frozen=True)
class Rounded(Pass):
    """Stores the head in float16, and says so or not."""

    name: ClassVar = "rounded"
    contract: ClassVar = Contract.exact()
    is_honest: bool = True

    def run(self, program: Program) -> PassReport:
        from compiler.contracts.weights import cast

        name = "lm_head.weight"
        program.weights[name] = cast(cast(program.weights[name], "float16"), "float32")
        return PassReport((name,))

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        head = old["lm_head.weight"]
        rounded = head.astype(np.float16).astype(np.float32)
        return {**old, "lm_head.weight": rounded if self.is_honest else head}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_pipeline_keeps_its_contracts(traced_models: TracedModels, phase: Phase):
    numbers, program = followed(traced_models, phase)
    start = numbers.at_start
    assert start.error == 0
    assert start.float64_error is not None
    assert 0 < start.float64_error < 1e-4
    for one in PIPELINE:
        if phase not in one.phases:
            continue
        assert one.run(program).rewrites
        program.prune_parameters()
        measured = numbers.follow(one, program)
        assert measured.error <= 1e-5
        assert measured.float64_error is not None
        assert measured.float64_error < 1e-4


@pytest.mark.parametrize("factor", [1.0, 1.0009])
def test_within_the_promise(traced_models: TracedModels, factor: float):
    numbers, program = followed(traced_models)
    one = Scaled(factor=factor)
    one.run(program)
    measured = numbers.follow(one, program)
    assert (measured.error > 0) == (factor != 1.0)
    assert measured.float64_error is not None
    assert measured.float64_error >= measured.error * 0.9


def test_a_breach_says_promise_entry_float64_and_where_it_begins(traced_models: TracedModels):
    numbers, program = followed(traced_models)
    one = Scaled(factor=1.01)
    one.run(program)
    with pytest.raises(CheckFailed) as caught:
        numbers.follow(one, program)
    message = caught.value.message
    assert message.startswith("promises close(rtol=0.001, atol=0), but logits[0, ")
    assert "; in float64 it is " in message
    assert "; it begins outside the layers, at lm_head/Mul (off by " in message


def test_rounded_weights_are_held_to_the_graph_before_on_rounded_weights(
    traced_models: TracedModels,
):
    numbers, program = followed(traced_models)
    one = Rounded()
    one.run(program)
    measured = numbers.follow(one, program)
    assert measured.error == 0
    assert measured.float64_error is not None
    assert measured.float64_error > 1e-5  # what the rounding itself costs is still seen


def test_rounding_that_is_not_declared(traced_models: TracedModels):
    numbers, program = followed(traced_models)
    one = Rounded(is_honest=False)
    one.run(program)
    with pytest.raises(CheckFailed, match="promises exact, but logits"):
        numbers.follow(one, program)


def test_without_float64(traced_models: TracedModels):
    probe = traced_models.probe("own-head-dim")
    program = probe.programs.programs["decode"]
    numbers = MeasuredPhase(program, probe.read, vocabulary=probe.vocabulary, has_float64=False)
    assert numbers.at_start.float64_error is None
    FoldConstants().run(program)
    assert numbers.follow(FoldConstants(), program).float64_error is None
