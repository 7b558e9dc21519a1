"""An example is the smallest thing that a pass rewrites, and comes from running it."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from buggy_passes import RewritesForEver

from compiler.contracts.pass_base import Pass, PassReport, Skip
from compiler.contracts.program import Program
from compiler.pass_kit.example import example_of, skips_of
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias


@pytest.mark.parametrize(
    ("rewriting", "before", "after"),
    [
        (
            FuseRMSNorm(),
            ["Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul", "Mul"],
            ["FusedRMSNorm"],
        ),
        (FuseSiluMul(), ["Sigmoid", "Mul", "Mul"], ["FusedSiluMul"]),
        (InsertStridedSlice(), ["MatMul"], ["Sub", "Gather", "MatMul"]),
        (InsertStridedSlice(position="last"), ["MatMul"], ["Slice", "MatMul"]),
    ],
    ids=str,
)
def test_an_example_is_one_rewrite(rewriting, before: list[str], after: list[str]):
    example = example_of(rewriting)
    assert example is not None
    assert [node.op for node in example.before.graph.nodes] == before
    assert [node.op for node in example.after.graph.nodes] == after
    assert len(example.rewrites) == 1


def test_an_idle_pass_has_none():
    assert example_of(KeepQKVBias()) is None


def test_an_unsound_pass_has_one_too():
    example = example_of(RewritesForEver())
    assert example is not None
    assert [node.op for node in example.before.graph.nodes] == ["Softmax"]
    assert [node.op for node in example.after.graph.nodes] == ["Identity", "Softmax"]


@dataclass(frozen=True)
class Picky(Pass):
    """Declines every Softmax, for a reason with names and numbers in it."""

    name: ClassVar = "pick-none"

    def run(self, program: Program) -> PassReport:
        found = [node for node in program.graph.nodes if node.op == "Softmax"]
        skips = [Skip(n.name, f"{n.inputs[0].name} is 1 of {len(found)}") for n in found]
        return PassReport(skips=(*skips, Skip("graph", "it is a graph")))


def test_skips_are_one_for_each_reason():
    assert skips_of(Picky()) == (
        Skip("model.layers.0.self_attn/Softmax", "model.layers.0.self_attn/Add_2 is 1 of 1"),
        Skip("graph", "it is a graph"),
    )
