"""The tiny models that a target is tried on: a Qwen2 checkpoint, and generated blocks.

Weights are the probe's: biases are not zero and norms are not one. The model's vocabulary is no
multiple of 16, and its context ends soon, so that it can be filled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler import registry
from compiler.checkpoints import tensors_of_folder
from compiler.config import BuildConfig, load_config
from compiler.contracts.program import PHASES, ProgramSet
from compiler.contracts.weights import CheckpointRef, StoredTensor
from compiler.numerics.probe import random_rows
from compiler.pass_kit.block_options import QKV, BlockOptions
from compiler.pass_kit.blocks import block_program

WINDOW, CONTEXT = 32, 48
VOCABULARY = 120
_PLAIN = BlockOptions(
    tokens=WINDOW,
    context=CONTEXT,
    kv_heads=4,
    group=1,
    head_dim=16,
    hidden=64,
    intermediate=96,
    vocabulary=128,
    biases=(),
)


# The sizes of the Qwen2 model.
MODEL = replace(_PLAIN, layers=2, kv_heads=2, group=2, vocabulary=VOCABULARY)


@dataclass(frozen=True)
class Block:
    """One building block: the plain model of one layer, and what is different in it.

    Attributes:
        name: Of its check.
        about: What is different.
        options: The graph.
        may_be_refused: Whether a target's constraints may refuse it.
    """

    name: str
    about: str
    options: BlockOptions
    may_be_refused: bool = False


# A block that holds all that a bias can be lost in; it is built in every dtype.
BIASED = Block("linear-bias", "biases on q, k and v", replace(_PLAIN, biases=QKV))
BLOCKS: tuple[Block, ...] = (
    Block("linear", "no bias, as many key heads as query heads", _PLAIN),
    BIASED,
    Block(
        "grouped-queries",
        "two key heads of two query heads each",
        replace(_PLAIN, kv_heads=2, group=2),
    ),
    Block("one-key-head", "one key head", replace(_PLAIN, kv_heads=1, group=4)),
    Block(
        "rotary",
        "another base, cosines and sines scaled",
        replace(_PLAIN, theta=1e6, rotary_scale=1.25),
    ),
    Block("tied-head", "the head is the embedding", replace(_PLAIN, is_tied=True)),
    Block(
        "vocabulary",
        "a vocabulary that is no multiple of 16",
        replace(_PLAIN, vocabulary=VOCABULARY),
    ),
    Block(
        "head-norm",
        "queries and keys normed by head",
        replace(_PLAIN, has_qk_norm=True, kv_heads=2, group=2),
    ),
    Block(
        "odd-sizes",
        "widths that are no multiples of 16",
        replace(
            _PLAIN,
            kv_heads=1,
            group=3,
            head_dim=10,
            hidden=44,
            intermediate=52,
            vocabulary=71,
            biases=QKV,
        ),
        may_be_refused=True,
    ),
)


def block_config(options: BlockOptions) -> Mapping[str, object]:
    """The config.json of a model with the sizes of a block."""
    return {
        "model_type": "qwen2",
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.head_dim,
        "vocab_size": options.vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": options.epsilon,
        "rope_theta": options.theta,
        "max_position_embeddings": options.context,
        "tie_word_embeddings": options.is_tied,
    }


def block_programs(options: BlockOptions) -> ProgramSet:
    """Both graphs of a block, as traced."""
    return ProgramSet({phase: block_program(replace(options, phase=phase)) for phase in PHASES})


def write_block(folder: Path, block: Block, *, seed: int) -> CheckpointRef:
    """The weights of a block, in a new folder."""
    programs = block_programs(block.options)
    shapes = {
        name: shape for program in programs for name, shape in program.checkpoint_tensors.items()
    }
    config = block_config(block.options)
    write_checkpoint(folder, config, shapes, seed=seed)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return CheckpointRef(folder, config, tensors_of_folder(folder), digest)


def write_model(folder: Path, *, seed: int) -> Path:
    """A random Qwen2 of two layers, with grouped queries and biases, in a new folder."""
    config = {
        **block_config(MODEL),
        "architectures": ["Qwen2ForCausalLM"],
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": None,
    }
    write_checkpoint(folder, config, registry.load_family("qwen2")().tensors(config), seed=seed)
    return folder


def write_checkpoint(
    folder: Path,
    config: Mapping[str, object],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int,
) -> None:
    """config.json, and float32 tensors drawn from the seed and their names."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text("{}\n", encoding="utf-8")
    stored = {name: StoredTensor(Path(), 0, shape, "float32") for name, shape in shapes.items()}
    read = random_rows(stored, seed=seed)
    tensors = {name: np.ascontiguousarray(read(name, 0, shapes[name][0])) for name in shapes}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def model_config(folder: Path, checkpoint: Path, *, target: str, dtype: str) -> BuildConfig:
    """The checked configuration of a YAML that is written to `folder`."""
    tree = {
        "name": f"conformance-{dtype}",
        "frontend": {
            "type": "huggingface",
            "checkpoint": str(checkpoint),
            "shape": {"input_ids": [[WINDOW], [CONTEXT]]},
        },
        "backend": {"type": target, "dtype": dtype},
        "verify": "structure",
        "workspace": {"path": str(folder / "workspace")},
    }
    path = folder / f"conformance-{dtype}.yaml"
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return load_config(path)
