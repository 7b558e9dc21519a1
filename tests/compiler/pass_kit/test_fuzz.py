"""The built-in passes survive generated graphs; a pass that does nothing has not been tried."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from built_in_passes import built_in_passes

from compiler import registry
from compiler.contracts.errors import ConfigError, PassError
from compiler.contracts.pass_base import Pass, PassReport, Skip
from compiler.contracts.program import Program
from compiler.pass_kit import draw_recipe, plain_recipe, try_pass
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias
from passes.store_weights import StoreWeights

# Of most passes a few show whether they can be tried at all; some match few graphs. The acceptance
# run draws two hundred for each.
GRAPHS, MORE_GRAPHS = 6, 20


@pytest.mark.slow
@pytest.mark.parametrize("rewriting", built_in_passes(), ids=str)
def test_a_built_in_pass_survives(rewriting: Pass):
    tried = try_pass(rewriting, graphs=GRAPHS)
    if tried.matched_nothing:
        tried = try_pass(rewriting, graphs=MORE_GRAPHS)
    assert tried.failure is None, tried.failure.finding.said
    assert tried.passed
    assert tried.refused < tried.graphs // 2


def test_what_was_done_is_counted():
    done: list[int] = []
    tried = try_pass(FuseSiluMul(), graphs=4, watch=done.append)
    assert done == [1, 2, 3, 4]
    assert (tried.graphs, tried.rewrote, tried.passed) == (4, 4, True)
    layers = [draw_recipe(FuseSiluMul(), seed=seed).options.layers for seed in range(4)]
    assert 0 < tried.rewrites <= sum(layers)
    assert tried.refused == 0


@dataclass(frozen=True)
class Idle(Pass):
    """Declines all it sees."""

    name: ClassVar = "do-nothing"

    def run(self, program: Program) -> PassReport:
        return PassReport(skips=(Skip(program.graph.nodes[0].name, "it is only the first"),))


@dataclass(frozen=True)
class Refuses(Pass):
    name: ClassVar = "refuse-all"

    def run(self, program: Program) -> PassReport:
        raise PassError("no graph is good enough")


def test_a_pass_that_matches_nothing_has_failed():
    tried = try_pass(Idle(), graphs=3)
    assert (tried.matched_nothing, tried.passed, tried.failure) == (True, False, None)
    assert (tried.declined, [skip.reason for skip in tried.examples]) == (
        3,
        ["it is only the first"],
    )
    tried = try_pass(Refuses(), graphs=3)
    assert (tried.matched_nothing, tried.passed, tried.refused) == (True, False, 3)


def test_a_pass_that_only_promises_has_not():
    tried = try_pass(KeepQKVBias(), graphs=3)
    assert (tried.rewrites, tried.has_invariants, tried.passed) == (0, True, True)


# -- where a pass is tried


@pytest.mark.parametrize("seed", range(20))
def test_earlier_passes_stand_in_an_order_that_they_declare(seed: int):
    rewriting = FuseAttention()
    recipe = draw_recipe(rewriting, seed=seed)
    names = [one.name for one in recipe.earlier]
    assert {"fold-mask", "plan-kv-cache"} <= set(names)
    assert recipe.kept == {"fold-mask", "plan-kv-cache"}
    assert len(set(names)) == len(names)
    for index, one in enumerate(recipe.earlier):
        assert set(one.required()) <= set(names[:index])
        assert not set(one.after) & set(names[index:])
        assert rewriting.name not in (one.name, *one.after, *one.required())


def test_earlier_passes_vary():
    drawn = [draw_recipe(FoldMask(), seed=seed) for seed in range(160)]
    assert len({tuple(one.name for one in recipe.earlier) for recipe in drawn}) > 10
    passes = {one for recipe in drawn for one in recipe.earlier}
    stored = {one for one in passes if isinstance(one, StoreWeights)}
    assert stored > {StoreWeights()}
    assert {recipe.options.phase for recipe in drawn} == {"prefill", "decode"}


def test_the_plain_place_is_behind_what_a_pass_requires():
    recipe = plain_recipe(InsertStridedSlice())
    assert [one.name for one in recipe.earlier] == ["fold-mask"]
    assert str(recipe) == "prefill, 1 layer, 2 query and 1 key heads, seed 0, after fold-mask"


@pytest.mark.parametrize("rewriting", built_in_passes(), ids=str)
def test_every_built_in_pass_has_a_plain_place(rewriting: Pass):
    recipe = plain_recipe(rewriting)
    assert recipe.case() is not None
    assert {one.name for one in recipe.earlier} == recipe.kept >= set(rewriting.required())


def test_a_plainer_recipe_keeps_what_the_pass_requires():
    recipe = draw_recipe(FuseAttention(), seed=3)
    for simpler in recipe.simpler():
        names = {one.name for one in simpler.earlier}
        assert {"fold-mask", "plan-kv-cache"} <= names
        assert (len(simpler.earlier), simpler.options) != (len(recipe.earlier), recipe.options)


@dataclass(frozen=True)
class NeedsMore(Pass):
    """Requires a pass that refuses every graph."""

    name: ClassVar = "need-more"
    requires: ClassVar = ("refuse-all",)

    def run(self, program: Program) -> PassReport:
        raise AssertionError("there is no graph to run on")


def test_blocks_that_an_earlier_pass_refuses_are_not_drawn_for_ever(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(registry, "PASSES", {})
    monkeypatch.setattr(registry, "load_pass", lambda name: {"refuse-all": Refuses}[name])
    tried = try_pass(NeedsMore(), graphs=2)
    assert (tried.graphs, tried.passed, tried.failure) == (0, False, None)


@dataclass(frozen=True)
class Counts(Pass):
    """Has an option that nobody can guess."""

    name: ClassVar = "count-things"
    limit: int

    def run(self, program: Program) -> PassReport:
        return PassReport()


def test_a_required_pass_needs_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "PASSES", {"count-things": "nowhere:Counts"})
    monkeypatch.setattr(registry, "load_pass", lambda name: {"count-things": Counts}[name])

    @dataclass(frozen=True)
    class Needs(NeedsMore):
        requires: ClassVar = ("count-things",)

    with pytest.raises(ConfigError, match="'count-things' is required and has an option that"):
        try_pass(Needs(), graphs=1)
    assert try_pass(Idle(), graphs=6).graphs == 6, "elsewhere it is left out"
