"""A pass with a fault in one layer: the build stops; bisect finds it and writes what shows it."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from checkpoint_factory import write_checkpoint
from compiler_process import environment, run_compiler

LAYERS, LAYER = 8, 5
FAULTY = f'''
"""fuse-rms-norm, with an epsilon that is wrong in layer {LAYER}."""

from dataclasses import dataclass

from passes.fuse_rms_norm import FuseRMSNorm


@dataclass(frozen=True)
class Faulty(FuseRMSNorm):
    """Eats part of a small norm."""

    def run(self, program):
        report = super().run(program)
        for node in program.graph.nodes:
            if node.name == "model.layers.{LAYER}.input_layernorm/FusedRMSNorm":
                node.attrs["epsilon"] = 0.5
        return report
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML whose fuse-rms-norm is faulty, with its checkpoint."""
    folder = tmp_path_factory.mktemp("bisect")
    write_checkpoint(folder / "checkpoint", layers=LAYERS)
    (folder / "faulty.py").write_text(FAULTY)
    (folder / "model.yaml").write_text(
        "frontend: {checkpoint: checkpoint, type: huggingface, shape: {input_ids: [[16], [32]]}}\n"
        "backend: {type: llvm}\n"
        "passes: {replace: {fuse-rms-norm: './faulty.py:Faulty'}}\n"
    )
    return folder


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_build_stops_and_names_pass_and_layer(folder: Path):
    done = run_compiler("build", "model.yaml", "--json", cwd=folder, code=1)
    (error,) = json.loads(done.stdout)["errors"]
    assert error["code"] == "pass-contract"
    assert error["where"].startswith("model.yaml:3:")
    assert error["message"].startswith("pass 'fuse-rms-norm' on prefill: promises close(")
    assert (
        f"it begins in layer {LAYER}, at model.layers.{LAYER}.input_layernorm/" in error["message"]
    )
    assert not (folder / "build" / "model").exists()


@pytest.mark.slow
def test_bisect_writes_a_small_graph_and_a_test_that_fails_until_it_is_mended(folder: Path):
    arguments = ("bisect", "model.yaml", "--set", "verify=off", "--json", "-o", "found")
    result = json.loads(run_compiler(*arguments, cwd=folder, code=1).stdout)
    finding = result["finding"]
    assert (finding["name"], finding["phase"], finding["layer"]) == (
        "fuse-rms-norm",
        "prefill",
        LAYER,
    )
    assert finding["node"].startswith(f"model.layers.{LAYER}.input_layernorm/")
    assert len(result["runs"]) <= 5  # of nine passes: log2(9) + 1 is 4.2
    before = onnx.load(folder / "found" / "fuse-rms-norm.before.onnx")
    assert len(before.graph.node) < 12
    after = onnx.load(folder / "found" / "fuse-rms-norm.after.onnx")
    assert "FusedRMSNorm" in {node.op_type for node in after.graph.node}

    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "found"]
    failed = _run(test, folder)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    mended = FAULTY.replace('node.attrs["epsilon"] = 0.5', "pass")
    (folder / "faulty.py").write_text(mended)
    passed = _run(test, folder)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert json.loads(run_compiler(*arguments, cwd=folder).stdout)["ok"] is True


def test_a_tolerance_that_is_none(tmp_path: Path):
    done = run_compiler("bisect", "model.yaml", "--tolerance", "-1", cwd=tmp_path, code=2)
    assert "--tolerance is -1.0" in done.stderr
