"""All passes on a skeleton of 80 layers and no weights: how long, and how that grows."""

import time
from pathlib import Path

import pytest
from acceptance_table import Table
from machine_load import wait_for_quiet

from compiler.contracts.program import ProgramSet
from compiler.contracts.weights import CheckpointRef, StoredTensor
from compiler.pass_order import PlannedPass
from compiler.registry import load_pass
from compiler.stages.rewrite import rewrite
from compiler.stages.trace import trace
from models.qwen2 import Qwen2

pytestmark = pytest.mark.accept

# Qwen1.5-72B, but for a vocabulary that pad-vocabulary has something to do with.
CONFIG: dict[str, object] = {
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 24576,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 152072,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
LAYERS = (20, 40, 80)
PASSES: dict[str, dict[str, str]] = {
    "keep-qkv-bias": {},
    "fold-constants": {},
    "fold-mask": {},
    "plan-kv-cache": {},
    "insert-strided-slice": {},
    "fuse-qkv": {},
    "fuse-gate-up": {},
    "fuse-rotary": {},
    "pad-vocabulary": {},
    "fuse-attention": {},
    "fuse-rms-norm": {},
    "fuse-silu-mul": {},
    "cast-dtype": {"dtype": "float16"},
    "annotate-int8-qdq": {},
    "store-kv-cache": {"dtype": "int8"},
    "store-weights": {"dtype": "float16"},
    "eliminate-dead": {},
}


def skeleton(layers: int) -> ProgramSet:
    """Both phases, from names and shapes alone."""
    config = {**CONFIG, "num_hidden_layers": layers}
    tensors = {
        name: StoredTensor(Path(), 0, shape, "bfloat16")
        for name, shape in Qwen2().tensors(config).items()
    }
    checkpoint = CheckpointRef(Path(), config, tensors, digest="")
    return trace(Qwen2(), checkpoint, window=1024, context=2048)


def seconds_of_passes(programs: ProgramSet) -> float:
    planned = [PlannedPass(load_pass(name)(**options), name) for name, options in PASSES.items()]
    began = time.perf_counter()
    rewritten = rewrite(programs, planned)
    elapsed = time.perf_counter() - began
    idle = {r.name for r in rewritten.records} - {r.name for r in rewritten.records if r.rewrites}
    assert idle <= {"keep-qkv-bias", "eliminate-dead"}, f"these did nothing: {idle}"
    return elapsed


def test_all_passes_on_eighty_layers(table: Table) -> None:
    load = wait_for_quiet(limit_seconds=300)
    seconds = {layers: seconds_of_passes(skeleton(layers)) for layers in LAYERS}
    shown = ", ".join(f"{time:.1f} s at {layers}" for layers, time in seconds.items())
    table.judge(
        f"{len(PASSES)} passes on both phases of Qwen1.5-72B's shape, `verify: structure`",
        wanted="< 20 s at 80 layers; four times the layers in less than six times the time",
        measured=f"{shown} (others' load at the start {load:.2f} cores)",
        is_met=seconds[80] < 20 and seconds[80] < 6 * seconds[20],
    )
