"""One YAML, one command: torch, llvm and the accelerator on equal tokens, whoever it names."""

import json
from pathlib import Path

import pytest
from built_bundles import in_this_process
from vacc_bundles import INT8, VaccBundles, VaccModel

from compiler.cli import main

pytestmark = pytest.mark.slow

# Each target takes its own options of the YAML, which names the other.
FLOATS = VaccModel(compiled=(("strict", True),))
CODES = VaccModel(quantize=INT8.quantize, compiled=(("threads", 1),))


def command(folder: Path, vacc_bundles: VaccBundles, built: VaccModel, target: str) -> list[str]:
    path = vacc_bundles.yaml(folder / "model.yaml", built)
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["backend"]["type"] = target
    path.write_text(json.dumps(tree), encoding="utf-8")
    prompts = folder / "prompts.txt"
    prompts.write_text(" ".join(f"t{7 * index % 50}" for index in range(37)) + "\n")
    asked = ["--targets", "torch,llvm,vacc", "--prompts", str(prompts), "--tokens", "3"]
    return ["compare", str(path), *asked, "--html", str(folder / "report.html")]


def test_an_fp16_model_on_three_targets(
    vacc_bundles: VaccBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_this_process():
        code = main(command(tmp_path, vacc_bundles, FLOATS, "vacc"))
    said = capsys.readouterr().out
    assert code == 0, said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (said, page):
        assert "tvm_llvm" in text
        assert "tvm_vacc" in text


def test_an_int8_model_on_three_targets(
    vacc_bundles: VaccBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command(tmp_path, vacc_bundles, CODES, "llvm")
    with in_this_process():
        code = main([*asked, "--level", "layer", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (code, report["passed"]) == (0, True)
    found = report["comparisons"]
    assert [one["candidate"] for one in found] == ["tvm_llvm", "tvm_vacc"]
    for one in found:
        assert one["reference"] == "torch"
        assert {(tap["layer"], tap["point"]) for tap in one["taps"]} == {
            *((layer, point) for layer in range(2) for point in ("keys", "values", "resid2")),
            *((None, point) for point in ("embed", "norm", "logits")),
        }
    assert "tvm_vacc" in (tmp_path / "report.html").read_text(encoding="utf-8")
