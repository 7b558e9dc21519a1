"""A plan without a weight: its numbers are those of the bundle that a build makes."""

import json
from pathlib import Path

import numpy as np
import pytest
from built_bundles import TINY, BuiltBundles, TinyModel, in_this_process
from disk_state import files_below

from compiler.config import load_config
from compiler.contracts.errors import BundleError
from compiler.contracts.weights import StoredTensor
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.check import CheckResult, check

pytestmark = pytest.mark.slow

BF16 = TinyModel("bf16", stored="bfloat16", dtype="bf16", tied=True)


def checked(yaml: Path, *overrides: str) -> CheckResult:
    with in_this_process():
        return check(load_config(yaml, overrides=overrides))


def stored_bytes(bundle: Path) -> int:
    """Bytes of the tensors in a bundle's parameters, without header and padding."""
    data = (bundle / "params" / "rank0.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    spans = [one["data_offsets"] for name, one in header.items() if "_padding" not in name]
    return sum(end - start for start, end in spans)


@pytest.mark.parametrize("model", [TINY, BF16], ids=lambda model: model.name)
def test_the_plan_is_what_a_build_makes(built_bundles: BuiltBundles, model: TinyModel) -> None:
    built, bundle = built_bundles.result(model), built_bundles.bundle(model)
    result = checked(built_bundles.yaml(model))
    assert (result.ok, result.errors) == (True, ())
    plan = result.plan
    assert plan is not None
    manifest = open_bundle(bundle).manifest
    assert plan.disk_bytes == stored_bytes(bundle)
    prefill = manifest.modules[0]
    caches = [spec for spec in prefill.inputs if spec.name in prefill.aliases.values()]
    assert {spec.shape for spec in caches} == {(48, 2, 16)}
    widths = sum(np.dtype(spec.dtype).itemsize for spec in caches)
    assert plan.cache_bytes == widths * 48 * 2 * 16
    assert plan.memory_bytes == plan.disk_bytes + plan.cache_bytes
    assert [(p.phase, p.tokens, p.parameters) for p in plan.phases] == [
        (module.phase, module.tokens, len(module.params)) for module in manifest.modules
    ]
    assert [(p.name, p.phase, p.rewrites, p.skips) for p in plan.passes] == [
        (record.name, record.phase, record.rewrites, len(record.skips)) for record in built.passes
    ]


def test_weights_that_phases_do_not_share_count_twice(built_bundles: BuiltBundles) -> None:
    shared = checked(built_bundles.yaml()).plan
    apart = checked(built_bundles.yaml(), "backend.merge_params=false").plan
    assert shared is not None
    assert apart is not None
    # All of them stand in both phases, but for the few bytes of what one has alone.
    assert apart.disk_bytes == pytest.approx(2 * shared.disk_bytes, rel=0.05)


@pytest.mark.parametrize("verify", ["probe", "model"])
def test_no_weight_is_read(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """The weights are a hole in the file, as long as they should be, and nobody looks at it."""
    yaml = built_bundles.variant(tmp_path, name="sparse")
    source = built_bundles.checkpoint()
    target = tmp_path / "checkpoint"
    target.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (target / name).write_bytes((source / name).read_bytes())
    whole = (source / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    with (target / "model.safetensors").open("wb") as stream:
        stream.write(whole[:header])
        stream.truncate(len(whole))
    read: list[str] = []
    monkeypatch.setattr(StoredTensor, "rows", lambda self, *_: read.append(str(self.file)))

    result = checked(yaml, f"frontend.checkpoint={target}", f"verify={verify}")
    expected = checked(built_bundles.yaml())
    assert result.errors == ()
    assert read == []
    assert result.plan is not None
    assert expected.plan is not None
    assert result.plan.disk_bytes == expected.plan.disk_bytes
    assert result.plan.phases == expected.plan.phases


def test_a_check_writes_nothing(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    yaml = built_bundles.variant(tmp_path / "model")
    before = files_below(tmp_path)
    assert checked(yaml).ok
    assert files_below(tmp_path) == before


def test_what_is_in_the_way_is_an_error_beside_the_plan(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    yaml = built_bundles.variant(tmp_path)
    (tmp_path / "workspace" / "tiny").mkdir(parents=True)
    result = checked(yaml)
    assert not result.ok
    (error,) = result.errors
    assert isinstance(error, BundleError)
    assert error.where == str(tmp_path / "workspace" / "tiny")
    assert result.plan is not None


def test_every_error_is_found_at_once(built_bundles: BuiltBundles) -> None:
    result = checked(
        built_bundles.yaml(), "backend.compile.features=[avx3]", "backend.compile.threads=0"
    )
    assert (result.ok, result.plan) == (False, None)
    messages = [error.message for error in result.errors]
    assert len(messages) == 2
    assert "avx3" in messages[0]
    assert "threads is 0" in messages[1]


def test_a_damaged_checkpoint_is_an_error(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    yaml = built_bundles.variant(tmp_path)
    target = tmp_path / "checkpoint"
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((built_bundles.checkpoint() / name).read_bytes())
    with (target / "model.safetensors").open("r+b") as stream:
        stream.truncate(20_000)
    result = checked(yaml, f"frontend.checkpoint={target}")
    assert (result.ok, result.plan) == (False, None)
    assert "model.safetensors" in str(result.errors[0].where)
