"""The models that runtimes are measured on, as Hugging Face folders, and the work in them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint_factory import write_checkpoint, write_half_billion
from safetensors.numpy import load_file, save_file

from compiler.config import load_config
from compiler.contracts.progress import Progress
from compiler.stages.checkpoint import locate_checkpoint

_ROOT = Path(__file__).parents[1]
# Bytes of a weight and of a cached value, by what the weights are stored in.
_WEIGHT_BYTES: Mapping[str, float] = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5}
_CACHED_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "int8": 2, "int4": 2}


@dataclass(frozen=True)
class Shape:
    """What decides how much work is in a model.

    Attributes:
        layers: Decoder layers.
        query: Width of all query heads.
        key: Width of all key heads.
        vocabulary: Number of logits.
        layer_weights: Of all layers' matrices.
        head_weights: Of the head.
    """

    layers: int
    query: int
    key: int
    vocabulary: int
    layer_weights: int
    head_weights: int

    def prefill_operations(self, tokens: int) -> float:
        """Multiplications and additions of a prompt, of whose rows the last one gets logits."""
        attention = 4 * self.query * self.layers * tokens * (tokens + 1) / 2
        return 2 * tokens * self.layer_weights + 2 * self.head_weights + attention

    def decode_operations(self, past: int) -> float:
        """Of a token that attends to `past` others and itself."""
        attention = 4 * self.query * self.layers * (past + 1)
        return 2 * (self.layer_weights + self.head_weights) + attention

    def read_bytes(self, kind: str, positions: int) -> float:
        """Every weight once, and the cache of so many positions."""
        weights = (self.layer_weights + self.head_weights) * _WEIGHT_BYTES[kind]
        return weights + 2 * self.key * self.layers * positions * _CACHED_BYTES[kind]


def shape_of(checkpoint: Path) -> Shape:
    """Read off config.json."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, key = heads * head_dim, config["num_key_value_heads"] * head_dim
    layer = 2 * hidden * (query + key) + 3 * hidden * config["intermediate_size"]
    return Shape(
        layers=config["num_hidden_layers"],
        query=query,
        key=key,
        vocabulary=config["vocab_size"],
        layer_weights=layer * config["num_hidden_layers"],
        head_weights=hidden * config["vocab_size"],
    )


def checkpoint_of(model: str, folder: Path) -> Path:
    """A model's folder below `folder`; made where it is not there."""
    place = folder / model / "checkpoint"
    done = place / "complete"
    if not done.is_file():
        MODELS[model](place)
        _write_tokenizer(place, shape_of(place).vocabulary)
        done.touch()
    return place


def _write_smollm2(place: Path) -> None:
    """The trained Llama as the Qwen2 that it is with biases of zero."""
    reference = load_config(_ROOT / "models" / "smollm2-135m.yaml").frontend.checkpoint
    source = locate_checkpoint(reference, base=_ROOT, progress=Progress()).path
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("q_proj.weight", "k_proj.weight"))]:
        tensors[name.replace("weight", "bias")] = np.zeros(len(tensors[name]), np.float32)
    for name in [name for name in tensors if name.endswith("v_proj.weight")]:
        tensors[name.replace("weight", "bias")] = np.zeros(len(tensors[name]), np.float32)
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    changed = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    kept = {key: value for key, value in config.items() if key != "attention_bias"}
    text = json.dumps({**kept, **changed}, indent=2)
    (place / "config.json").write_text(text, encoding="utf-8")


def _write_tiny(place: Path) -> None:
    write_checkpoint(place, hidden=128, layers=2, intermediate=256, vocabulary=512, tied=True)


def _write_tokenizer(place: Path, vocabulary: int) -> None:
    """A word a token: some exporters refuse a folder without a tokenizer, and none is used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"t{index}": index for index in range(vocabulary)}
    Tokenizer(WordLevel(words, unk_token="t0")).save(str(place / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "eos_token": "t1"}
    (place / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")


MODELS: Mapping[str, Callable[[Path], object]] = {
    "qwen1.5-0.5b-shape": write_half_billion,
    "smollm2": _write_smollm2,
    "tiny": _write_tiny,
}
