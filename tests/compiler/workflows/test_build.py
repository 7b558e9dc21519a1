"""When a build works, when it keeps what stands there, and when it refuses before any work."""

from pathlib import Path

import pytest
from built_bundles import TINY, BuiltBundles, TinyModel, in_this_process
from disk_state import files_below

from compiler.config import load_config
from compiler.contracts.errors import BundleError, CompilerErrors, MachineLacks
from compiler.contracts.progress import Progress, StageRecord
from compiler.stages import package as package_stage
from compiler.stages.open_bundle import open_bundle
from compiler.workflows import build as build_workflow
from compiler.workflows.build import build
from targets.llvm.runner import LLVMRunner

pytestmark = pytest.mark.slow

STAGES = ["checkpoint", "trace", "rewrite", "lower", "package"]


class Heard(Progress):
    """Remembers stages and notes."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.finished: list[StageRecord] = []

    def start(self, stage: str) -> None:
        self.stages.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, record: StageRecord) -> None:
        self.finished.append(record)


def test_a_build_says_what_it_did(built_bundles: BuiltBundles) -> None:
    result = built_bundles.result()
    assert result.bundle == built_bundles.config().workspace_path / "tiny"
    assert not result.up_to_date
    assert [stage.name for stage in result.stages] == STAGES
    manifest = open_bundle(result.bundle).manifest
    assert manifest.digest == result.digest
    assert (manifest.name, manifest.target, manifest.vocabulary) == ("tiny", "tvm_llvm", 128)
    assert (manifest.window, manifest.context) == (TINY.window, TINY.context)
    assert [(m.phase, m.tokens, m.folder) for m in manifest.modules] == [
        ("prefill", 32, "prefill_32_rank0"),
        ("decode", 1, "decode_48_rank0"),
    ]
    recorded = [(record["name"], record["phase"]) for record in manifest.passes]
    assert recorded == [(record.name, record.phase) for record in result.passes]
    assert manifest.checkpoint["model_type"] == "qwen2"


def test_both_phases_read_one_copy_of_the_weights(built_bundles: BuiltBundles) -> None:
    prefill, decode = open_bundle(built_bundles.bundle()).manifest.modules
    assert prefill.stored == decode.stored
    assert set(prefill.params) == set(prefill.stored)


def test_phases_that_share_no_weights_run_as_those_that_do(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    overrides = ["backend.merge_params=false", "workspace.env_recheck=true"]
    overrides += [f"workspace.work_dir={tmp_path / 'scratch'}"]
    heard = Heard()
    config = load_config(built_bundles.yaml(), overrides=overrides)
    with in_this_process():
        bundle = open_bundle(build(config, output=tmp_path / "bundle", progress=heard).bundle)
    assert sorted(path.name for path in (bundle.path / "params").iterdir()) == [
        "decode_rank0.safetensors",
        "prefill_rank0.safetensors",
    ]
    assert heard.notes == ["workspace.env_recheck has no effect here"]
    assert list((tmp_path / "scratch").iterdir()) == []
    shared = LLVMRunner(open_bundle(built_bundles.bundle()))
    apart = LLVMRunner(bundle)
    for tokens in ([3, 1, 4, 1, 5], [9], [2, 6]):
        assert apart.extend(tokens).tobytes() == shared.extend(tokens).tobytes()


def test_a_snapshot_of_each_phase_after_each_pass(built_bundles: BuiltBundles) -> None:
    result = built_bundles.result()
    snapshots = sorted(path.name for path in (result.bundle / "ir").rglob("*.onnx"))
    for name in {record.name for record in result.passes}:
        assert any(name in snapshot for snapshot in snapshots), name


def test_an_equal_bundle_is_kept(built_bundles: BuiltBundles) -> None:
    first, heard = built_bundles.result(), Heard()
    found = build(built_bundles.config(), progress=heard)
    assert (found.bundle, found.digest, found.up_to_date) == (first.bundle, first.digest, True)
    assert (found.stages, found.passes) == ((), ())
    assert heard.stages == ["checkpoint"]
    assert heard.notes == [f"{first.bundle} is up to date"]


def test_an_output_folder_is_absolute(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_bundles.copy(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    found = build(built_bundles.config(), output=Path("copy"))
    assert (found.bundle, found.up_to_date) == (tmp_path / "copy", True)


def test_another_configuration_is_refused_before_any_work(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    bundle = built_bundles.copy(tmp_path / "copy")
    before, heard = files_below(tmp_path), Heard()
    config = load_config(built_bundles.yaml(), overrides=["frontend.shape.input_ids=[[32],[64]]"])
    with pytest.raises(BundleError, match="another bundle is in the way") as caught:
        build(config, output=bundle, progress=heard)
    assert caught.value.where == str(bundle)
    assert "--force" in str(caught.value.hint)
    assert heard.stages == ["checkpoint"]
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_bundle_is_never_replaced(
    built_bundles: BuiltBundles, tmp_path: Path, force: bool
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("the only copy")
    before, heard = files_below(tmp_path), Heard()
    with pytest.raises(BundleError, match="in the way that is not a bundle"):
        build(built_bundles.config(), output=tmp_path / "mine", force=force, progress=heard)
    assert heard.stages == ["checkpoint"]
    assert files_below(tmp_path) == before


def test_force_replaces_another_bundle_and_nothing_of_it_stays(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    bundle = built_bundles.copy(tmp_path / "out" / "bundle")
    config = load_config(built_bundles.yaml(), overrides=["frontend.shape.input_ids=[[16],[]]"])
    with in_this_process():
        found = build(config, output=bundle, force=True)
    assert not found.up_to_date
    assert found.digest != built_bundles.result().digest
    assert open_bundle(bundle).manifest.window == 16
    assert [path.name for path in bundle.glob("*_rank0")] == ["prefill_16_rank0"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle"]


def test_wrong_options_are_refused_together_and_before_any_work(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    heard = Heard()
    overrides = ["backend.compile.features=[avx3]", "backend.compile.treads=2"]
    config = load_config(built_bundles.yaml(), overrides=overrides)
    with pytest.raises(CompilerErrors) as caught:
        build(config, output=tmp_path / "bundle", progress=heard)
    assert len(caught.value.errors) == 2
    assert heard.stages == ["checkpoint"]
    assert files_below(tmp_path) == {}


def test_a_disk_that_is_too_small_is_told_before_lowering(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(destination: Path, needed: int) -> None:
        raise MachineLacks(f"{needed} bytes do not fit", where=str(destination))

    heard = Heard()
    monkeypatch.setattr(build_workflow, "check_space", refuse)
    with in_this_process(), pytest.raises(MachineLacks, match=r"\d+ bytes do not fit"):
        build(built_bundles.config(), output=tmp_path / "bundle", progress=heard)
    assert heard.stages == ["checkpoint", "trace", "rewrite"]
    assert files_below(tmp_path) == {}


def test_a_failure_while_packaging_leaves_the_disk_as_it_was(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    bundle = built_bundles.copy(tmp_path / "bundle")
    before = files_below(tmp_path)
    monkeypatch.setattr(package_stage, "_write_files", fail)
    with in_this_process(), pytest.raises(KeyboardInterrupt):
        build(built_bundles.config(), output=bundle, force=True)
    assert files_below(tmp_path) == before


def test_bf16_storage_halves_the_parameters(built_bundles: BuiltBundles) -> None:
    narrow = TinyModel("bf16", stored="bfloat16", dtype="bf16", tied=True)
    config = built_bundles.config(narrow)
    manifest = open_bundle(built_bundles.bundle(narrow)).manifest
    wide = open_bundle(built_bundles.bundle(TINY)).manifest
    assert config.backend.dtype == "bf16"
    params = "params/rank0.safetensors"
    assert manifest.sizes[params] < 0.55 * wide.sizes[params]
