"""Qwen3, every rope type, sliding windows and LogN, after all passes, call by call.

The reference is transformers in float32 on the same chunks; of LogN, which it lacks, numpy.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from family_variants import VARIANTS
from numpy_model import float64_logits
from reference_model import load_reference, reference_chunks
from safetensors.numpy import load_file
from traced_models import CONTEXT, VOCABULARY, TracedModels
from window_runs import WindowRuns

from compiler.contracts.program import Phase

# A padded window; one that passes 16 and 20; steps; a window that ends with the context; a step.
CHUNKS = (9, 16, 1, 1, 1, 10, 1, 1)

pytestmark = pytest.mark.slow


def draw(length: int, seed: int = 3) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


def cut(tokens: list[int], lengths: tuple[int, ...]) -> list[list[int]]:
    ends = np.cumsum(lengths)
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def logn_reference(folder: Path, chunks: list[list[int]]) -> list[np.ndarray]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    tokens = [token for chunk in chunks for token in chunk]
    logits = float64_logits(config, tensors, tokens, logn_length=config["seq_length"])
    return np.split(logits, np.cumsum([len(chunk) for chunk in chunks])[:-1])


@pytest.mark.parametrize("name", VARIANTS)
def test_windows_and_steps_equal_the_reference(traced_models: TracedModels, name: str):
    assert sum(CHUNKS) == CONTEXT
    chunks = cut(draw(CONTEXT), CHUNKS)
    folder = traced_models.checkpoint(name).path
    wanted = (
        logn_reference(folder, chunks)
        if name == "logn"
        else reference_chunks(load_reference(folder), chunks)
    )
    runs = WindowRuns(traced_models, name)
    for chunk, logits in zip(chunks, wanted, strict=True):
        where = f"{len(chunk)} tokens after {runs.length}"
        np.testing.assert_allclose(runs.extend(chunk), logits[-1], rtol=0, atol=1e-5, err_msg=where)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_each_kind_of_layer_has_its_window(traced_models: TracedModels, phase: Phase):
    program = WindowRuns(traced_models, "sliding").programs[phase]
    attended = [node for node in program.graph.nodes if node.op == "FusedAttention"]
    assert [(node.name, node.attrs["window"]) for node in attended] == [
        ("model.layers.0.self_attn/FusedAttention", 0),
        ("model.layers.1.self_attn/FusedAttention", 6),
    ]


def test_taps_of_qwen3_are_reached_by_name(traced_models: TracedModels):
    program = WindowRuns(traced_models, "qwen3").programs["decode"]
    layer = "model.layers.1"
    assert {
        f"{layer}.input_layernorm/FusedRMSNorm",
        *(f"{layer}.self_attn.{name}_proj/MatMul" for name in ("q", "k", "v", "o")),
        *(f"{layer}.self_attn.{name}_norm/FusedRMSNorm" for name in ("q", "k")),
        # The rotated q and k, the scores' end, and the two residual sums.
        *(f"{layer}.self_attn/{name}" for name in ("Add", "Add_1", "FusedAttention")),
        *(f"{layer}/{name}" for name in ("Add", "Add_1")),
        f"{layer}.post_attention_layernorm/FusedRMSNorm",
        *(f"{layer}.mlp.{name}_proj/MatMul" for name in ("gate", "up", "down")),
        f"{layer}.mlp/FusedSiluMul",
    } <= {node.name for node in program.graph.nodes}
