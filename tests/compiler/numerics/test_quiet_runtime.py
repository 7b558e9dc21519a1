"""onnxruntime is loaded so that it writes nothing and reports to nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiler_process import ROOT

CODE = """
import numpy as np, onnx.parser, sys, time
{load}
from compiler.numerics.reference_run import run_model
model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) {{ y = Neg (x) }}'
)
assert run_model(model, {{"x": np.ones(2, np.float32)}})["y"].tolist() == [-1, -1]
time.sleep(0.5)
"""


def left_behind(folder: Path, load: str) -> list[str]:
    """What a process that runs a graph leaves in its home and its temporary folder."""
    # Where it finds itself in a test it is quiet of its own accord.
    hints = ("CI", "ORT_", "GITHUB_", "PYTEST_", "TF_BUILD", "BUILD_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hints)}
    env |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    env.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-B", "-c", CODE.format(load=load)]
    subprocess.run(command, env=env, cwd=folder, check=True)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("load", ["", "from compiler.numerics.reference_run import ort_value"])
def test_nothing_is_left_behind(tmp_path: Path, load: str):
    assert left_behind(tmp_path, load) == []


def test_loaded_in_another_way_it_would_leave_something(tmp_path: Path):
    """Where this fails, onnxruntime reports no more, and the module may go."""
    assert left_behind(tmp_path, "import onnxruntime") != []
