"""ONNX files written by the documentation's recipe, built and run, against transformers."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from built_bundles import TinyModel, write_tiny
from compiler_process import run_json
from exported_models import EXPORTS, ROOT, SIZES, VARIANTS, export_quietly, hollow
from program_runs import run_program, traced_inputs
from reference_model import load_reference, reference_greedy
from traced_models import CONTEXT, WINDOW
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from compiler.contracts.errors import CheckpointError
from compiler.stages.execute import GenerateOptions
from compiler.stages.import_onnx import import_onnx, locate_onnx
from compiler.workflows.run import open_session

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
YAML = """
name: tiny
frontend:
  type: onnx
  checkpoint: model.onnx
  shape: {input_ids: [[32], [48]]}
backend: {type: tvm_llvm, dtype: fp32}
workspace: {path: ./workspace}
"""


def write_recipe(folder: Path) -> Path:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    path = folder / "export.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_the_documented_export_builds_and_runs_like_transformers(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint", TinyModel(tied=True))
    script = write_recipe(tmp_path)
    command = (sys.executable, str(script), str(checkpoint), "model.onnx")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "model.yaml").write_text(YAML, encoding="utf-8")

    result = run_json("build", "model.yaml", cwd=tmp_path)
    bundle = tmp_path / str(result["bundle"])
    assert (tmp_path / "model.onnx.data").is_file()
    assert list(bundle.rglob("tokenizer.json"))
    again = run_json("build", "model.yaml", cwd=tmp_path)
    assert again["up_to_date"] is True

    reference = load_reference(checkpoint)
    with open_session(bundle) as session:
        for length in (32, 9, 40):
            prompt = np.random.default_rng(length).integers(0, 128, length).tolist()
            generation = session.complete(prompt, GenerateOptions(max_tokens=8, keep_logits=True))
            tokens, logits = reference_greedy(reference, prompt, 8)
            assert list(generation.tokens) == tokens
            assert generation.logits is not None
            assert np.abs(generation.logits - logits).max() < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stored_exports_are_what_the_recipe_writes(tmp_path: Path, variant: str) -> None:
    attention, opset = variant.split("_")
    config = Qwen2Config.from_dict({**SIZES, "attn_implementation": attention})
    fresh = export_quietly(Qwen2ForCausalLM(config), tmp_path / "fresh.onnx", int(opset))
    assert hollow(fresh).graph.node == onnx.load(EXPORTS / f"{variant}.onnx").graph.node


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_opset_20_is_taken_too(tmp_path: Path, family: str) -> None:
    """Both families, at the recipe's default, with numbers of transformers."""
    torch.manual_seed(1)
    kinds = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config_class, model_class = kinds[family]
    model = model_class(config_class.from_dict({**SIZES, "hidden_size": 96})).eval()
    path = export_quietly(model, tmp_path / "model.onnx")
    checkpoint = locate_onnx(path, window=WINDOW)
    program = import_onnx(path, checkpoint, window=WINDOW, context=CONTEXT).programs["prefill"]
    inputs = traced_inputs(program, past=0, valid=WINDOW, vocabulary=80)
    found = run_program(program, inputs, checkpoint)["logits"]
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs["input_ids"])).logits.numpy()
    assert np.abs(found - wanted).max() < 1e-5
    biases = [name for name in checkpoint.tensors if name.endswith(".bias")]
    assert len(biases) == (0 if family == "llama" else 3 * SIZES["num_hidden_layers"])


def test_an_export_without_a_past_is_refused(tmp_path: Path) -> None:
    model = Qwen2ForCausalLM(Qwen2Config.from_dict(SIZES)).eval()
    path = tmp_path / "model.onnx"
    ids = torch.ones(1, 5, dtype=torch.long)
    dynamic = {1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            kwargs={"use_cache": False},
            dynamo=True,
            opset_version=20,
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic, "use_cache": None},
            verbose=False,
        )
    assert program is not None
    program.save(path)
    with pytest.raises(CheckpointError, match="it takes no past keys and values"):
        locate_onnx(path, window=WINDOW)
