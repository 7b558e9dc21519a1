"""Tiny checkpoints of random weights, as a Hugging Face folder, made without torch.

    write_checkpoint(tmp_path / "tiny", hidden=64, layers=2, heads=4, kv_heads=2)

Everything that a test could miss by being neutral is not: biases are non-zero, norm weights are not
one. A tensor's values depend on the seed and its name alone, not on the shards. Tensors are written
one at a time, so that a checkpoint of true size needs the memory of its largest tensor.
"""

import json
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from compiler.contracts.weights import DTYPES

_STORED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}


def write_checkpoint(
    folder: Path,
    *,
    model_type: str = "qwen2",
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 96,
    vocabulary: int = 128,
    tied: bool = False,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write config.json, generation_config.json and safetensors; the folder itself is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": vocabulary - 1,
        "torch_dtype": dtype,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    if model_type != "qwen2":
        config["attention_bias"] = False
    generation = {"bos_token_id": 1, "eos_token_id": [vocabulary - 1]}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    shapes = _shapes(
        hidden=hidden,
        layers=layers,
        query=heads * (head_dim or hidden // heads),
        key=kv_heads * (head_dim or hidden // heads),
        intermediate=intermediate,
        vocabulary=vocabulary,
        is_tied=tied,
        has_bias=model_type == "qwen2",
        head_norm=(head_dim or hidden // heads) if model_type == "qwen3" else 0,
    )
    _write_shards(folder, shapes, shards=shards, dtype=dtype, seed=seed)
    return folder


def write_half_billion(folder: Path) -> Path:
    """Qwen1.5-0.5B's shape in bfloat16: 24 layers, 0.93 GB."""
    return write_checkpoint(
        folder,
        hidden=1024,
        layers=24,
        heads=16,
        kv_heads=16,
        intermediate=2816,
        vocabulary=151936,
        tied=True,
        dtype="bfloat16",
    )


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write given arrays as one safetensors file, in the order of the mapping."""
    with path.open("wb") as stream:
        shapes = {name: array.shape for name, array in tensors.items()}
        stream.write(_header(shapes, {name: array.dtype for name, array in tensors.items()}))
        for array in tensors.values():
            stream.write(np.ascontiguousarray(array).tobytes())
    return path


def change_config(folder: Path, **keys: object) -> None:
    """Replace or add keys of config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write_json(folder / "config.json", {**config, **keys})


def change_tensors(folder: Path, changed: Mapping[str, np.ndarray | None]) -> None:
    """Rewrite model.safetensors with tensors replaced, added or (None) left out."""
    arrays: dict[str, np.ndarray | None] = {**load_file(folder / "model.safetensors"), **changed}
    kept = {name: array for name, array in arrays.items() if array is not None}
    write_safetensors(folder / "model.safetensors", kept)


def _shapes(
    *,
    hidden: int,
    layers: int,
    query: int,
    key: int,
    intermediate: int,
    vocabulary: int,
    is_tied: bool,
    has_bias: bool,
    head_norm: int,
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        for name, width in (("q", query), ("k", key), ("v", key)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (width, hidden)
            if has_bias:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
        for name in ("q", "k") if head_norm else ():
            shapes[f"{prefix}self_attn.{name}_norm.weight"] = (head_norm,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, query)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, intermediate)
    shapes["model.norm.weight"] = (hidden,)
    if not is_tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def _values(name: str, shape: tuple[int, ...], *, dtype: str, seed: int) -> np.ndarray:
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    drawn = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        drawn = 1 + np.float32(0.25) * drawn
    elif name.endswith(".bias"):
        drawn *= np.float32(0.5)
    else:
        drawn *= np.float32(shape[-1] ** -0.5)
    return drawn.astype(DTYPES[dtype])


def _write_shards(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, shards: int, dtype: str, seed: int
) -> None:
    names = list(shapes)
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    for shard, file in enumerate(files):
        part = {name: shapes[name] for name in names[shard::shards]}
        with (folder / file).open("wb") as stream:
            stream.write(_header(part, dict.fromkeys(part, DTYPES[dtype])))
            for name, shape in part.items():
                stream.write(_values(name, shape, dtype=dtype, seed=seed).tobytes())
    if shards > 1:
        size = sum(prod(shape) for shape in shapes.values()) * DTYPES[dtype].itemsize
        placed = {name: files[position % shards] for position, name in enumerate(names)}
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        _write_json(folder / "model.safetensors.index.json", index)


def _header(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * dtypes[name].itemsize
        stored = _STORED_DTYPES[dtypes[name].name]
        entries[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
