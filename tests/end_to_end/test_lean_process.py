"""A session needs neither torch nor transformers nor TVM's compiler, though all are installed."""

from pathlib import Path

import pytest
from built_bundles import BuiltBundles
from compiler_process import run_python

pytestmark = pytest.mark.slow

LIMIT_BYTES = 120_000_000
HEAVY = ("torch", "transformers", "tvm", "onnx", "onnxruntime", "onnx_graphsurgeon")

# Resident bytes are counted less the mapped pages of the parameters.
PROGRAM = """
import json, re, sys
from pathlib import Path
import psutil
from compiler.stages.execute import GenerateOptions
from compiler.workflows.run import open_session

with open_session(Path(sys.argv[1])) as session:
    generation = session.complete(sys.argv[2], GenerateOptions(max_tokens=8))
    heavy = [name for name in sys.argv[3].split(",") if name in sys.modules]
    maps = Path("/proc/self/smaps").read_text()
    weights = re.findall(r"rank0\\.safetensors\\n(?:[A-Z]\\w+: +\\d+ kB\\n)*?Rss: +(\\d+) kB", maps)
    resident = psutil.Process().memory_info().rss - 1024 * sum(map(int, weights))
has_blocked_torch = "torch" in sys.modules
import torch
print(json.dumps({
    "heavy": heavy, "resident": resident, "weights": 1024 * sum(map(int, weights)),
    "tokens": generation.tokens, "text": generation.text,
    "has_blocked_torch": has_blocked_torch, "sum": float(torch.ones(3).sum()),
}))
"""


def test_a_tiny_model_runs_in_a_lean_process(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    found = run_python(PROGRAM, built_bundles.bundle(), "t1 t2", ",".join(HEAVY), cwd=tmp_path)
    assert found["heavy"] == []
    assert isinstance(found["resident"], int)
    assert 20_000_000 < found["resident"] < LIMIT_BYTES
    tokens = found["tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 8
    assert found["text"] == " ".join(f"t{token}" for token in tokens)


def test_torch_can_be_imported_afterwards(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    found = run_python(PROGRAM, built_bundles.bundle(), "t1", "torch", cwd=tmp_path)
    assert (found["heavy"], found["has_blocked_torch"], found["sum"]) == ([], False, 3.0)


def test_measuring_stays_as_lean(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    program = """
import contextlib, io, json, sys
from compiler.cli import main
said = io.StringIO()
with contextlib.redirect_stdout(said):
    code = main(["bench", sys.argv[1], "--blocks", "1", "--profile", "--json", "--quiet"])
heavy = [name for name in sys.argv[2].split(",") if name in sys.modules]
print(json.dumps({"code": code, "heavy": heavy, "found": json.loads(said.getvalue())}))
"""
    done = run_python(program, built_bundles.bundle(), ",".join(HEAVY), cwd=tmp_path)
    assert (done["code"], done["heavy"]) == (0, [])
    found = done["found"]
    assert isinstance(found, dict)
    assert 20_000_000 < found["peak_resident_bytes"] < LIMIT_BYTES


@pytest.mark.model
def test_the_trained_model_runs_in_a_lean_process(trained_bundle: Path, tmp_path: Path) -> None:
    found = run_python(
        PROGRAM, trained_bundle, "Paris is the capital of", ",".join(HEAVY), cwd=tmp_path
    )
    assert found["heavy"] == []
    weights, resident = found["weights"], found["resident"]
    assert isinstance(weights, int)
    assert isinstance(resident, int)
    assert weights > 500_000_000  # mapped, not copied
    assert resident < LIMIT_BYTES  # tokenizer and the touched part of the cache included
