"""SmolLM2 as a Qwen2: its tensors in transformers' Qwen2 with zero biases, exported to ONNX.

A Llama without biases is a Qwen2 whose biases are zero, so that tokens must be the Llama's own.
"""

import shutil
from pathlib import Path

import torch
from compiler_process import run_json
from exported_models import export_quietly
from reference_model import reference_greedy
from trained_model import (
    CONTEXT,
    WINDOW,
    gguf_file,
    largest_difference,
    prompts,
    trained_reference,
)
from transformers import Qwen2Config, Qwen2ForCausalLM

from compiler.checkpoints import folder_from_gguf
from compiler.contracts.progress import Progress
from compiler.stages.execute import GenerateOptions
from compiler.text import TOKENIZER_FILES
from compiler.workflows.run import open_session

TOKENS = 64
TOLERANCE = 1e-3
PROMPTS = ("english", "longer than the window")
YAML = f"""
name: smollm2-as-qwen2
frontend:
  type: onnx
  checkpoint: model.onnx
  shape: {{input_ids: [[{WINDOW}], [{CONTEXT}]]}}
backend: {{type: tvm_llvm, dtype: fp32}}
workspace: {{path: ./workspace}}
"""


def as_qwen2(attention: str) -> Qwen2ForCausalLM:
    """transformers' Qwen2 with the tensors of the GGUF file."""
    llama = trained_reference()
    given = llama.config.to_dict()
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "rms_norm_eps",
        "rope_parameters",
        "max_position_embeddings",
        "tie_word_embeddings",
    )
    config = Qwen2Config.from_dict(
        {**{key: given[key] for key in keys}, "attn_implementation": attention}
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    missing, unexpected = model.load_state_dict(llama.state_dict(), strict=False)
    assert unexpected == []
    with torch.no_grad():
        for name in missing:
            assert name.endswith("_proj.bias"), name
            model.get_parameter(name).zero_()
        buffers = dict(llama.named_buffers())
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return model


def export_trained(folder: Path, *, attention: str, opset: int) -> Path:
    """The .onnx file, the tokenizer's files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    export_quietly(as_qwen2(attention), path, opset)
    checkpoint = folder_from_gguf(gguf_file(), check=lambda _: None, progress=Progress())
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder / name)
    return path


def assert_64_tokens_equal(folder: Path, *, attention: str, opset: int) -> None:
    """Export, build, and generate greedily beside transformers."""
    export_trained(folder, attention=attention, opset=opset)
    (folder / "model.yaml").write_text(YAML, encoding="utf-8")
    bundle = folder / str(run_json("build", "model.yaml", cwd=folder)["bundle"])
    reference = trained_reference()
    with open_session(bundle) as session:
        asked = prompts(session.text)
        for name in PROMPTS:
            options = GenerateOptions(max_tokens=TOKENS, keep_logits=True)
            generation = session.complete(asked[name], options)
            tokens, logits = reference_greedy(reference, asked[name], TOKENS)
            assert generation.logits is not None
            assert list(generation.tokens) == tokens
            assert largest_difference(generation.logits, logits) < TOLERANCE
