"""A bundle held against itself: no model, no reference."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from built_bundles import BuiltBundles

from compiler.bundle_json import manifest_from_json, manifest_to_json
from compiler.cli import main
from compiler.contracts.errors import BundleError, MachineLacks
from compiler.contracts.target_base import Probe
from compiler.workflows.check_bundle import check_bundle
from targets.llvm.target import LLVMTarget

pytestmark = pytest.mark.slow

CHECKS = ["causality", "prefill-decode", "window-split", "padding", "reset", "batch-rows"]


def test_a_bundle_by_itself(
    built_bundles: BuiltBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = built_bundles.bundle()
    page = tmp_path / "report.html"
    assert main(["compare", str(bundle), "--semantic", "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["passed"], found["comparisons"], found["ladder"]) == (True, [], None)
    assert list(found["semantic"]) == ["tiny"]
    checks = found["semantic"]["tiny"]
    assert [check["name"] for check in checks] == CHECKS
    assert [check["status"] for check in checks] == ["pass"] * 5 + ["not-applicable"]
    assert found["environment"] == {
        "bundle": "tiny",
        "target": "tvm_llvm",
        "digest": built_bundles.result().digest,
    }
    assert "<title>tiny: tiny</title>" in page.read_text(encoding="utf-8")


def test_a_bundle_is_no_yaml(
    built_bundles: BuiltBundles, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = built_bundles.bundle()
    assert main(["compare", str(bundle)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {bundle}: is a folder, expected a YAML",
        "  hint: name the YAML; or check a bundle by itself, with --semantic",
    ]


def test_prompts_are_drawn_by_the_seed(built_bundles: BuiltBundles) -> None:
    bundle = built_bundles.bundle()
    first, again, other = (check_bundle(bundle, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        check_bundle(tmp_path, seed=0)
    assert main(["compare", str(tmp_path), "--semantic"]) == 2
    assert "there is no bundle" in capsys.readouterr().err


@pytest.mark.parametrize("limits", [None, {}, {"max_rel": "small"}, [1]])
def test_a_bundle_without_its_limits(
    built_bundles: BuiltBundles, tmp_path: Path, limits: object
) -> None:
    bundle = built_bundles.copy(tmp_path / "bundle")
    file = bundle / "manifest.json"
    manifest = manifest_from_json(file.read_bytes(), where=str(file))
    older = replace(manifest, config={**manifest.config, "compare": limits})
    file.write_text(manifest_to_json(older))
    with pytest.raises(BundleError, match=r"has no compare\.max_rel") as caught:
        check_bundle(bundle, seed=0)
    assert caught.value.where == str(file)
    assert "build it again" in str(caught.value.hint)


def test_a_bundle_that_cannot_run_here(
    built_bundles: BuiltBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built_bundles.bundle()
    lacking = Probe(can_build=False, can_run=False, missing=("there is no such card",))
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: lacking)
    with pytest.raises(MachineLacks, match="'tvm_llvm' cannot run here: there is no such card"):
        check_bundle(bundle, seed=0)
