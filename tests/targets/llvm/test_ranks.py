"""Bundles of several ranks on the CPU: the logits of one rank, and each rank's file its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import BuiltBundles, TinyModel, in_this_process

from compiler.config import load_config
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import BundleError, CompilerErrors, ConfigError, TargetError
from compiler.contracts.taps import Observer
from compiler.ranks.launch import open_ranks
from compiler.stages.execute import GenerateOptions
from compiler.stages.open_bundle import open_bundle
from compiler.workflows import build as build_workflow
from compiler.workflows.build import build
from compiler.workflows.check import check
from compiler.workflows.run import open_session

pytestmark = pytest.mark.slow

EIGHT = TinyModel(heads=16, kv_heads=8)
TWO = replace(EIGHT, kv_heads=2, align_qkv=True)
# SmolLM2's heads.
NINE = TinyModel(heads=9, kv_heads=3, hidden=72)
# Two windows of the prompt, and single tokens behind it.
PROMPT = tuple(range(3, 40))
# It would stand before the passes that the target adds, too.
OWN_PASS = ["shard-pass", *(["pass-order"] * 5)]
OPTIONS = GenerateOptions(max_tokens=5, keep_logits=True)


def answered(bundle: Path) -> tuple[tuple[int, ...], np.ndarray]:
    with open_session(bundle) as session:
        found = session.complete(PROMPT, OPTIONS)
    assert found.logits is not None
    return found.tokens, found.logits


@pytest.mark.parametrize(
    ("model", "ways"), [(EIGHT, 2), (EIGHT, 4), (EIGHT, 8), (TWO, 4), (TWO, 8), (NINE, 3)]
)
def test_logits_are_those_of_one_rank(built_bundles: BuiltBundles, model: TinyModel, ways: int):
    tokens, logits = answered(built_bundles.bundle(replace(model, align_qkv=False)))
    bundle = built_bundles.bundle(replace(model, ways=ways))
    found, split = answered(bundle)
    assert found == tokens
    assert np.abs(split - logits).max() <= 1e-4 * np.abs(logits).max()
    manifest = open_bundle(bundle).manifest
    assert [(one.phase, one.rank) for one in manifest.modules] == [
        (phase, rank) for rank in range(ways) for phase in ("prefill", "decode")
    ]
    sizes = {manifest.sizes[f"params/rank{rank}.safetensors"] for rank in range(ways)}
    assert len(sizes) == 1
    assert sizes.pop() < manifest.sizes["params/rank0.safetensors"] * ways


def test_quantized_ranks(built_bundles: BuiltBundles):
    model = replace(EIGHT, added=("annotate-int8-qdq",))
    tokens, logits = answered(built_bundles.bundle(model))
    found, split = answered(built_bundles.bundle(replace(model, ways=2)))
    assert found == tokens
    assert np.abs(split - logits).max() <= 1e-4 * np.abs(logits).max()


def test_equal_graphs_are_compiled_once(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled: list[int] = []
    config = load_config(built_bundles.yaml(replace(EIGHT, ways=2)))
    with in_this_process():
        run_parallel = build_workflow.run_parallel
        monkeypatch.setattr(
            build_workflow,
            "run_parallel",
            lambda work, calls, *, workers: (
                compiled.append(len(calls)) or run_parallel(work, calls, workers=workers)
            ),
        )
        found = build(config, output=tmp_path / "again")
    assert compiled == [2]
    manifest = open_bundle(found.bundle).manifest
    for phase in ("prefill_32", "decode_48"):
        hashes = {manifest.files[f"{phase}_rank{rank}/module.so"] for rank in range(2)}
        assert len(hashes) == 1


def test_a_plan_counts_all_ranks(built_bundles: BuiltBundles):
    one, two = (check(built_bundles.config(replace(EIGHT, ways=ways))).plan for ways in (1, 2))
    assert one is not None
    assert two is not None
    assert one.cache_bytes == two.cache_bytes
    assert one.disk_bytes < two.disk_bytes < 2 * one.disk_bytes
    assert [p.name for p in two.passes if p.name == "shard-tensor-parallel"] != []


def test_a_missing_rank_is_named(built_bundles: BuiltBundles, tmp_path: Path):
    copy = built_bundles.copy(tmp_path / "copy", replace(EIGHT, ways=2))
    (copy / "params" / "rank1.safetensors").unlink()
    with pytest.raises(BundleError, match=r"rank1\.safetensors is missing"):
        open_session(copy)
    whole = open_bundle(built_bundles.bundle(replace(EIGHT, ways=2)))
    kept = [one for one in whole.manifest.modules if (one.phase, one.rank) != ("decode", 0)]
    torn = Bundle(whole.path, replace(whole.manifest, modules=tuple(kept)))
    with pytest.raises(BundleError, match="rank 0 of 2 has no decode module"):
        open_ranks(torn, lambda rank, collectives, *, threads: pytest.fail("it was opened"))


def test_ranks_show_nothing_but_logits(built_bundles: BuiltBundles):
    class Watching(Observer):
        """Sees nothing."""

        points = frozenset()

        def see(self, tap, rows):
            raise AssertionError(tap)

    with (
        open_session(built_bundles.bundle(replace(EIGHT, ways=2))) as session,
        pytest.raises(TargetError, match="shows no taps"),
    ):
        session.runner.observe(Watching())


def _errors(config_error: CompilerErrors | ConfigError) -> list[str]:
    several = config_error.errors if isinstance(config_error, CompilerErrors) else (config_error,)
    return [error.code for error in several]


@pytest.mark.parametrize(
    ("changed", "codes"),
    [
        ({"ways": 4}, ["kv-heads"]),
        ({"ways": 3}, ["indivisible", "kv-heads"]),
        ({"ways": 2, "added": ("shard-tensor-parallel",)}, OWN_PASS),
        ({"added": ("shard-tensor-parallel",)}, OWN_PASS),
    ],
    ids=["key heads", "heads", "own pass", "own pass, one rank"],
)
def test_what_cannot_be_divided_is_refused_before_work(
    built_bundles: BuiltBundles, tmp_path: Path, changed: dict[str, object], codes: list[str]
):
    yaml = built_bundles.variant(tmp_path / "variant", **changed)
    with pytest.raises((CompilerErrors, ConfigError)) as caught:
        build(load_config(yaml))
    assert _errors(caught.value) == codes
