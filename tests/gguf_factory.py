"""Tiny GGUF files of random weights with a working tokenizer, made by the `gguf` package.

The weights come as Hugging Face tensors and are stored as llama.cpp's converter stores them:
Llama's Q and K with the rows of each head interleaved, linears quantized, norms and biases in
float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, LAYERS = 64, 4, 2, 96, 2
# gpt2's byte-level alphabet, then what two merges make, then the special tokens.
_BYTES = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
_BYTES += [chr(256 + position) for position in range(68)]
TOKENS = [*_BYTES, "he", "ll", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
IM_START, IM_END, END_OF_TEXT = len(TOKENS) - 3, len(TOKENS) - 2, len(TOKENS) - 1


@dataclass(frozen=True)
class GgufOptions:
    """What a test changes of the plain file."""

    architecture: str = "llama"
    is_tied: bool = True
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0
    integers: Mapping[str, int] = field(default_factory=dict)
    strings: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def huggingface_tensors(*, architecture: str, is_tied: bool, seed: int) -> dict[str, np.ndarray]:
    """GGUF name -> values in Hugging Face's row order."""
    random = np.random.default_rng(seed)
    key = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        for part, rows in (("q", HIDDEN), ("k", key), ("v", key)):
            shapes[f"{prefix}attn_{part}.weight"] = (rows, HIDDEN)
            if architecture == "qwen2":
                shapes[f"{prefix}attn_{part}.bias"] = (rows,)
        shapes[f"{prefix}attn_output.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{prefix}ffn_gate.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{prefix}ffn_up.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{prefix}ffn_down.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{prefix}attn_norm.weight"] = (HIDDEN,)
        shapes[f"{prefix}ffn_norm.weight"] = (HIDDEN,)
    shapes["output_norm.weight"] = (HIDDEN,)
    if not is_tied:
        shapes["output.weight"] = (len(TOKENS), HIDDEN)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, options: GgufOptions = GgufOptions(), *, seed: int = 0) -> Path:
    """Write the file; the path itself is returned."""
    architecture = options.architecture
    writer = gguf.GGUFWriter(path, architecture)
    _add_metadata(writer, options)
    tensors = huggingface_tensors(architecture=architecture, is_tied=options.is_tied, seed=seed)
    for name in options.extra:
        tensors[name] = np.ones((HIDDEN,), np.float32)
    for name, values in tensors.items():
        if name in options.without:
            continue
        stored = values
        if architecture == "llama" and ("attn_q" in name or "attn_k" in name):
            stored = _interleaved(values, HEADS if "attn_q" in name else KV_HEADS)
        if values.ndim == 1:
            writer.add_tensor(name, stored)
            continue
        writer.add_tensor(name, quantize(stored, options.kind), raw_dtype=options.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: gguf.GGUFWriter, options: GgufOptions) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if options.architecture == "llama" else "qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 3) + [3] * 3)
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(IM_START)
    writer.add_eos_token_id(IM_END)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    for key, value in options.integers.items():
        writer.add_uint32(key, value)
    for key, text in options.strings.items():
        writer.add_string(key, text)


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
