"""Comparing at true sizes: a trained model on every pair of targets, and what taps cost."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_table import Table
from checkpoint_factory import write_half_billion
from compiler_process import ROOT, command, environment, run_json
from process_memory import peak_of

pytestmark = pytest.mark.accept

MODEL = ROOT / "models" / "smollm2-135m.yaml"
LIMIT_BYTES = 2_000_000_000
YAML = """\
name: Qwen1.5-0.5B-shape
frontend:
  type: huggingface
  checkpoint: ./checkpoint
  shape: {input_ids: [[128], [1024]]}
backend: {type: tvm_llvm, dtype: fp32}
workspace: {path: ./workspace}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gone afterwards: gigabytes."""
    path = tmp_path_factory.mktemp("comparing")
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("level", ["end-to-end", "layer", "tap"])
@pytest.mark.parametrize("targets", ["torch,onnxruntime,llvm", "onnxruntime,llvm"])
def test_every_pair_of_targets_agrees(table: Table, folder: Path, targets: str, level: str) -> None:
    options = ("--targets", targets, "--level", level, "--set", f"workspace.path={folder}")
    report = run_json("compare", MODEL, *options, cwd=folder)
    for one in report["comparisons"]:  # type: ignore[attr-defined]
        logits = max(step["measures"]["max_abs"] for step in one["steps"])
        said = f"logits within {logits:.2g}, {one['near_ties']} near-ties"
        if one["taps"]:
            local = max(tap["local"]["max_rel"] for tap in one["taps"])
            said += f"; {len(one['taps'])} taps, local errors within {local:.2g}"
        table.judge(
            f"SmolLM2-135M, {one['candidate']} against {one['reference']}, {level}",
            wanted="within the limits",
            measured=said,
            is_met=bool(one["passed"]),
        )


def peak_of_compare(folder: Path, level: str) -> int:
    arguments = ("--targets", "torch,onnxruntime,llvm", "--tokens", "2", "--level", level)
    output = folder / f"{level}.json"
    with output.open("w") as stream:
        running = subprocess.Popen(
            command("compare", "model.yaml", *arguments, "--json"),
            cwd=folder,
            env=environment(),
            stdout=stream,
        )
        peak = peak_of(running, output)
    assert json.loads(output.read_text())["passed"] is True
    return peak


def test_taps_cost_little_memory(table: Table, folder: Path) -> None:
    write_half_billion(folder / "checkpoint")
    (folder / "model.yaml").write_text(YAML)
    run_json("build", "model.yaml", cwd=folder)
    targets_own, by_tap = (peak_of_compare(folder, level) for level in ("end-to-end", "tap"))
    table.judge(
        "Qwen1.5-0.5B's shape (24 layers), windows of 128, torch, onnxruntime and llvm by tap: "
        "peak over that of logits alone",
        wanted="< 2 GB",
        measured=f"{(by_tap - targets_own) / 1e9:.2f} GB: {by_tap / 1e9:.2f} over "
        f"{targets_own / 1e9:.2f} GB",
        is_met=by_tap - targets_own < LIMIT_BYTES,
    )
