"""The stage that folds prompts: every check between the pass and the bundle can fail."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from staged_models import POINTS, staged
from traced_models import TracedModels

from compiler.contracts.errors import CheckFailed, PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import PassReport, Skip
from compiler.contracts.program import Program
from compiler.contracts.weights import cast
from compiler.numerics.probe import ProbeModel
from compiler.stages.fold import Folded, fold
from passes.fold_batch import FoldBatch

PLACE = "model.yaml:7:12"


def folded(
    traced_models: TracedModels,
    folding: FoldBatch,
    *,
    point: str = "llvm",
    invariants: tuple[Invariant, ...] = (),
) -> Folded:
    programs = staged(traced_models, "own-head-dim", POINTS[point]).programs
    small = traced_models.probe("own-head-dim")
    for program in small.programs:
        for rewriting in POINTS[point]:
            if program.phase in rewriting.phases:
                rewriting.run(program)
                program.prune_parameters()
    return fold(
        programs,
        folding,
        batch=3,
        place=PLACE,
        invariants={"decode": invariants},
        probe=ProbeModel(small.programs, small.read, small.vocabulary),
    )


def test_decode_alone_is_folded(traced_models: TracedModels):
    before = staged(traced_models, "own-head-dim", POINTS["llvm"]).programs
    found = folded(traced_models, FoldBatch(batch=3))
    shapes = {
        phase: {spec.name: spec.shape for spec in program.inputs()}["input_ids"]
        for phase, program in found.programs.programs.items()
    }
    assert shapes == {"prefill": (1, 16), "decode": (1, 3)}
    assert found.programs.stored_bytes() == before.stored_bytes()
    record = found.record
    assert (record.name, record.phase, record.rewrites) == ("fold-batch", "decode", 2)
    assert record.error is not None
    assert 0 < record.error < 1e-4


def test_a_graph_that_is_declined_stops_the_build(traced_models: TracedModels):
    with pytest.raises(PassError) as caught:
        folded(traced_models, FoldBatch(batch=3), point="slice")
    assert (caught.value.code, caught.value.where) == ("not-folded", PLACE)
    assert "it reads a cache and is no FusedAttention" in caught.value.message


@dataclass(frozen=True)
class Confusing(FoldBatch):
    """The last prompt reads the first one's keys."""

    name: ClassVar = "confusing"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        attention = [node for node in program.graph.nodes if node.op == "FusedAttention"]
        first, last = attention[0], next(n for n in attention if n.name.endswith("slot2"))
        assert first.name.rpartition("/")[0] == last.name.rpartition("/")[0]
        last.inputs[1] = first.inputs[1]
        return report


@dataclass(frozen=True)
class Narrowing(FoldBatch):
    """A weight is stored otherwise."""

    name: ClassVar = "narrowing"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        name = "model.norm.weight"
        program.weights[name] = cast(cast(program.weights[name], "float16"), "float32")
        return report


@dataclass(frozen=True)
class Boasting(FoldBatch):
    """Reports what it did not do."""

    name: ClassVar = "boasting"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        return PassReport((*report.rewrites, "nowhere"), (Skip("x", "y"),))


@dataclass(frozen=True)
class BySize(FoldBatch):
    """Does another thing to a small graph."""

    name: ClassVar = "by-size"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        if program.context > 40:  # the probe's
            node = next(n for n in program.graph.nodes if n.op == "Neg")
            node.op = "Identity"
        return report


def test_a_prompt_that_reads_another_fails(traced_models: TracedModels):
    with pytest.raises(CheckFailed, match="do not give what each gives alone") as caught:
        folded(traced_models, Confusing(batch=3))
    assert (caught.value.code, caught.value.where) == ("prompts-differ", PLACE)


@pytest.mark.parametrize(
    ("folding", "said"),
    [
        (Narrowing(batch=3), "changed the weights"),
        (Boasting(batch=3), "reports 'nowhere', which no node or tensor is called"),
        (BySize(batch=3), "did not do the same to the probe"),
    ],
    ids=lambda value: value.name if isinstance(value, FoldBatch) else "",
)
def test_a_pass_that_is_at_fault_fails(traced_models: TracedModels, folding: FoldBatch, said: str):
    with pytest.raises(PassError, match=said):
        folded(traced_models, folding)


def test_an_invariant_that_breaks_fails(traced_models: TracedModels):
    class NoSplit:
        """Holds before the pass alone."""

        name = "no-split"

        def violations(self, program: Program) -> tuple[str, ...]:
            return tuple(n.name for n in program.graph.nodes if n.op == "Split")[:1]

    with pytest.raises(PassError, match="broke 'no-split'"):
        folded(traced_models, FoldBatch(batch=3), invariants=(NoSplit(),))


def test_weights_are_those_of_one_prompt(traced_models: TracedModels):
    one = staged(traced_models, "own-head-dim", POINTS["llvm"]).programs.programs["decode"]
    program = folded(traced_models, FoldBatch(batch=3)).programs.programs["decode"]
    assert program.weights == one.weights
    assert {spec.name: spec.shape for spec in program.outputs()}["logits"] == (1, 3, 80)
