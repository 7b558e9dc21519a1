"""Ranks together are the whole, in weights and in numbers; what cannot be cut is named."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from rank_programs import FUSED, RankModel, error_of, ranks_of, shards

from compiler.contracts.errors import CheckFailed, ConfigError
from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Phase, Program
from compiler.contracts.tensor_parallel import kv_heads_of_rank
from compiler.contracts.weight_values import value
from compiler.contracts.weights import cut, zeros
from passes._match import add_node
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.cast_dtype import CastDtype
from passes.eliminate_dead import EliminateDead
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQKV
from passes.fuse_rotary import FuseRotary
from passes.pad_vocabulary import PadVocabulary
from passes.shard_tensor_parallel import ShardTensorParallel

EIGHT, TWO, NINE = (
    RankModel(heads=16, kv_heads=8),
    RankModel(heads=16, kv_heads=2),
    RankModel(heads=9, kv_heads=3),
)
BIASED = RankModel(family="llama", has_all_biases=True)
ATTENTION = "model.layers.1.self_attn"

# -- ranks in step

DIVIDED = {
    "two ways": (EIGHT, 2, False),
    "four ways": (EIGHT, 4, False),
    "eight ways": (EIGHT, 8, False),
    "two key heads on four": (TWO, 4, True),
    "two key heads on eight": (TWO, 8, True),
    "three ways": (NINE, 3, False),
    "three key heads on two": (RankModel(heads=6, kv_heads=3), 2, True),
    "one key head on two": (RankModel(heads=4, kv_heads=1), 2, True),
    "norms of heads": (RankModel(family="qwen3"), 2, False),
    "every bias": (BIASED, 2, False),
    "a tied head": (RankModel(is_tied=True), 2, False),
    "a vocabulary that does not divide": (RankModel(vocabulary=95), 2, False),
}


@pytest.mark.parametrize(
    ("case", "phase"),
    [(case, "prefill") for case in DIVIDED]
    + [(case, "decode") for case in ("four ways", "two key heads on four", "one key head on two")],
)
def test_ranks_together_are_the_whole(case: str, phase: Phase):
    model, ways, align_qkv = DIVIDED[case]
    whole, invariants = model.whole(phase=phase)
    ranks = ranks_of(whole, shards(ways, align_qkv=align_qkv))
    assert error_of(model, whole, ranks) < 1e-5
    graphs = {one.program.model().SerializeToString(deterministic=True) for one in ranks}
    assert len(graphs) == 1
    for one in ranks:
        onnx.checker.check_model(one.program.model(), full_check=True)
        assert [said for held in invariants for said in held.violations(one.program)] == []


FORMS: dict[str, tuple[tuple[Pass, ...], tuple[Pass, ...]]] = {
    "unfused": ((), ()),
    "joined": ((FuseQKV(), FuseGateUp(), FuseRotary(), PadVocabulary(multiple=64)), FUSED),
    "joined and unfused": ((FuseQKV(), FuseGateUp(), EliminateDead()), ()),
    "int8": ((AnnotateInt8QDQ(),), FUSED),
    "joined int8": ((FuseQKV(), FuseGateUp(), AnnotateInt8QDQ()), FUSED),
    "the accelerator's operator": ((AnnotateInt8QDQ(operator="vastai"),), ()),
    "16 bits": ((CastDtype(dtype="float16"),), ()),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_passes_leave(form: str):
    added, fused = FORMS[form]
    whole, invariants = TWO.whole(added=added, fused=fused)
    ranks = ranks_of(whole, shards(4, align_qkv=True))
    assert error_of(TWO, whole, ranks) < (5e-2 if form == "16 bits" else 1e-5)
    for one in ranks:
        assert [said for held in invariants for said in held.violations(one.program)] == []


# -- weights


def _values(program: Program, model: RankModel) -> dict[str, np.ndarray]:
    read = model.reader()
    return {name: value(weight, read) for name, weight in program.weights.items()}


@pytest.mark.parametrize("added", [(), (AnnotateInt8QDQ(),)], ids=["float", "int8"])
def test_ranks_weights_together_are_the_weights(added: tuple[Pass, ...]):
    whole, _ = TWO.whole(added=added)
    ranks = [_values(one.program, TWO) for one in ranks_of(whole, shards(4, align_qkv=True))]
    columns, rows = ("q_proj", "gate_proj", "up_proj", "lm_head"), ("o_proj", "down_proj")
    kinds: set[str] = set()
    for name, weight in _values(whole, TWO).items():
        parts = [rank[name] for rank in ranks]
        if any(module in name for module in ("k_proj", "v_proj")):
            heads = weight.reshape(2, -1, *weight.shape[1:])
            for rank, part in enumerate(parts):
                (head,) = kv_heads_of_rank(2, 4, rank)
                assert part.tobytes() == heads[head].tobytes(), (name, rank)
        elif any(module in name for module in columns):
            assert np.concatenate(parts).tobytes() == weight.tobytes(), name
        elif any(module in name for module in rows) and weight.ndim == 2:
            assert np.concatenate(parts, axis=1).tobytes() == weight.tobytes(), name
        else:
            assert all(part.tobytes() == weight.tobytes() for part in parts), name
        kinds.add(weight.dtype.name)
    assert kinds == ({"float32", "int8"} if added else {"float32"})


def test_ranks_read_what_they_keep():
    whole, _ = EIGHT.whole()
    (_, second) = ranks_of(whole, shards(2))
    keys = {name: weight.key for name, weight in second.program.weights.items()}
    assert keys[f"{ATTENTION}.k_proj.weight"] == f"slice({ATTENTION}.k_proj.weight, 0, 32, 64)"
    assert keys[f"{ATTENTION}.k_proj.bias"] == f"slice({ATTENTION}.k_proj.bias, 0, 32, 64)"
    assert keys[f"{ATTENTION}.o_proj.weight"] == f"slice({ATTENTION}.o_proj.weight, 1, 64, 128)"


# -- planted faults


@dataclass(frozen=True)
class WithoutKeyBias(ShardTensorParallel):
    """The second rank's key bias is lost."""

    name: ClassVar = "without-key-bias"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        if self.rank == 1:
            name = f"{ATTENTION}.k_proj.bias"
            program.weights[name] = zeros(program.weights[name].shape, "float32")
        return report


@dataclass(frozen=True)
class WithDoubledBias(ShardTensorParallel):
    """The bias of o is added on every rank, before the sum."""

    name: ClassVar = "with-doubled-bias"

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        nodes = {node.name: node for node in program.graph.nodes}
        reduce, total = nodes[f"{ATTENTION}.o_proj/AllReduce"], nodes[f"{ATTENTION}.o_proj/Add"]
        (bias,) = (tensor for tensor in total.inputs if tensor.name in program.weights)
        early = add_node(program.graph, "Add", "early", [reduce.inputs[0], bias])
        reduce.inputs = [early]
        summed, result = reduce.outputs[0], total.outputs[0]
        total.outputs.clear()
        for reader in list(result.outputs):
            reader.inputs = [summed if tensor is result else tensor for tensor in reader.inputs]
        program.graph.cleanup().toposort()
        return report


@dataclass(frozen=True)
class WithSwappedRanks(ShardTensorParallel):
    """Every rank has the rows of o that belong to another."""

    name: ClassVar = "with-swapped-ranks"

    def run(self, program: Program) -> PassReport:
        whole = program.weights[f"{ATTENTION}.o_proj.weight"]
        report = super().run(program)
        width = whole.shape[1] // self.ways
        other = self.ways - 1 - self.rank
        share = cut(whole, 1, other * width, (other + 1) * width)
        program.weights[f"{ATTENTION}.o_proj.weight"] = share
        return report


@pytest.mark.parametrize("kind", [WithoutKeyBias, WithDoubledBias, WithSwappedRanks])
def test_a_planted_fault_is_caught(kind: type[ShardTensorParallel]):
    whole, _ = BIASED.whole()
    ranks = ranks_of(whole, [kind(2, rank) for rank in range(2)])
    with pytest.raises(CheckFailed, match="2 ranks together do not give what the whole gives"):
        error_of(BIASED, whole, ranks)


def test_a_lost_key_bias_breaks_the_invariant():
    whole, (kept,) = BIASED.whole()
    first, second = ranks_of(whole, [WithoutKeyBias(2, rank) for rank in range(2)])
    assert kept.violations(first.program) == ()
    (said,) = kept.violations(second.program)
    assert said == f"{ATTENTION}.k_proj.bias reaches 0 Adds in the prefill graph, expected one"


# -- what is declined


def _declined(model: RankModel, ways: int) -> list[tuple[str, str]]:
    whole, _ = model.whole()
    before = whole.model().SerializeToString()
    report = ShardTensorParallel(ways, align_qkv=True).run(whole)
    assert report.rewrites == ()
    assert whole.model().SerializeToString() == before
    return [(skip.node, skip.reason) for skip in report.skips]


def test_heads_that_do_not_divide():
    layer = "model.layers.0.self_attn"
    assert _declined(RankModel(), 3) == [
        (f"{layer}.q_proj/MatMul", "its 4 outputs of 8 do not divide by 3")
    ]


def test_channels_that_do_not_divide():
    ((node, reason),) = _declined(RankModel(intermediate=50), 4)
    assert (node.rpartition(".")[2], reason) == (
        "gate_proj/MatMul",
        "its 50 outputs of 1 do not divide by 4",
    )


def test_a_vocabulary_that_does_not_divide_stays_whole():
    whole, _ = RankModel(vocabulary=95).whole()
    report = ShardTensorParallel(2).run(whole)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("lm_head/MatMul", "its 95 outputs do not divide by 2")
    ]
    assert not any(node.op == "AllGather" for node in whole.graph.nodes)


def test_key_heads_are_repeated_only_with_leave():
    whole, _ = TWO.whole()
    with pytest.raises(ConfigError) as caught:
        ShardTensorParallel(4).run(whole)
    assert caught.value.code == "kv-heads"
    assert caught.value.message == "num_key_value_heads is 2, which tp 4 does not divide"
    assert "to store each 2 times" in str(caught.value.hint)


def test_a_sharded_graph_is_left_alone():
    whole, _ = RankModel().whole()
    assert ShardTensorParallel(2).run(whole).rewrites
    again = ShardTensorParallel(2).run(whole)
    assert (again.rewrites, again.skips[0].reason) == ((), "the graph is sharded already")


def test_an_operator_that_is_not_known():
    whole, _ = RankModel().whole()
    gate = next(node for node in whole.graph.nodes if node.op == "FusedSiluMul")
    gate.inputs[0] = add_node(whole.graph, "Softplus", "softer", [gate.inputs[0]])
    whole.graph.toposort()
    report = ShardTensorParallel(2).run(whole)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("softer", "Softplus is not known to work head by head")
    ]


def test_ranks_are_counted_from_zero():
    with pytest.raises(ValueError, match="rank 2 is none of 2 ways"):
        ShardTensorParallel(2, 2)
