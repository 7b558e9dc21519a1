"""The stage that shards: every check between a pass and its ranks can fail."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from rank_programs import RankModel, shards

from compiler.contracts.errors import CheckFailed, PassError
from compiler.contracts.pass_base import PassReport
from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.weights import cut, zeros
from compiler.numerics.probe import ProbeModel
from compiler.stages.shard import Sharded, shard
from passes.shard_tensor_parallel import ShardTensorParallel

MODEL = RankModel()
PLACE = "model.yaml:7:9"
UP = "model.layers.0.mlp.up_proj.weight"


def sharded(*passes: ShardTensorParallel, model: RankModel = MODEL, probe: bool = False) -> Sharded:
    whole, invariants = model.whole()
    programs = ProgramSet({"prefill": whole})
    measured = None
    if probe:
        small, _ = model.whole()
        measured = ProbeModel(ProgramSet({"prefill": small}), model.reader(), model.vocabulary)
    return shard(
        programs,
        passes or shards(2),
        place=PLACE,
        invariants={"prefill": invariants},
        probe=measured,
    )


def test_one_program_set_a_rank_and_one_record():
    found = sharded(probe=True)
    assert [list(one.programs) for one in found.ranks] == [["prefill"]] * 2
    (record,) = found.records
    assert (record.name, record.phase, record.rewrites) == ("shard-tensor-parallel", "prefill", 15)
    assert record.error is not None
    assert 0 < record.error < 1e-5


def test_a_graph_that_is_declined_stops_the_build():
    with pytest.raises(PassError) as caught:
        sharded(model=RankModel(intermediate=49))
    assert caught.value.code == "not-sharded"
    assert caught.value.where == PLACE
    assert "gate_proj/MatMul: its 49 outputs of 1 do not divide by 2" in caught.value.message


@dataclass(frozen=True)
class OfOneRank(ShardTensorParallel):
    """Every rank has the first one's rows of a weight."""

    name: ClassVar = "of-one-rank"

    def run(self, program: Program) -> PassReport:
        whole = program.weights[UP]
        report = super().run(program)
        program.weights[UP] = cut(whole, 0, 0, whole.shape[0] // self.ways)
        return report


def test_what_lies_on_no_rank_is_named():
    with pytest.raises(PassError) as caught:
        sharded(OfOneRank(2, 0), OfOneRank(2, 1))
    assert caught.value.code == "not-covered"
    assert UP in caught.value.message


@dataclass(frozen=True)
class WithoutBias(ShardTensorParallel):
    """The first rank's value bias is lost."""

    name: ClassVar = "without-bias"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        name = "model.layers.0.self_attn.v_proj.bias"
        if self.rank == 0:
            program.weights[name] = zeros(program.weights[name].shape, "float32")
        return report


def test_an_invariant_holds_on_each_rank():
    with pytest.raises(PassError, match=r"broke 'keep-qkv-bias': model\.layers\.0\.self_attn\.v_"):
        sharded(WithoutBias(2, 0), WithoutBias(2, 1))


@dataclass(frozen=True)
class Exchanged(ShardTensorParallel):
    """Rank 0 is given the up projection of rank 1, and the other way round."""

    name: ClassVar = "exchanged"

    def run(self, program: Program) -> PassReport:
        whole = program.weights[UP]
        report = super().run(program)
        width = whole.shape[0] // 2
        program.weights[UP] = cut(whole, 0, (1 - self.rank) * width, (2 - self.rank) * width)
        return report


def test_the_probe_s_ranks_are_run_in_step():
    sharded(Exchanged(2, 0), Exchanged(2, 1))
    with pytest.raises(CheckFailed, match="in float64, too") as caught:
        sharded(Exchanged(2, 0), Exchanged(2, 1), probe=True)
    assert caught.value.where == PLACE
