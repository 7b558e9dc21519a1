"""GGUF's words in Hugging Face's: config.json from the metadata, and the names of the tensors.

    llama.attention.head_count_kv  -> num_key_value_heads
    blk.3.attn_q.weight            -> model.layers.3.self_attn.q_proj.weight

Declined, by key or tensor: an architecture other than those below, metadata of the architecture
that is not known to be without effect (scaled or partial rotary, mixture of experts, sliding
windows, ...), and a tensor that is not known. Key names:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.checkpoints.gguf_header import GgufHeader, GgufTensor, MetadataValue
from compiler.contracts.errors import CheckpointError, CompilerError, raise_all

ARCHITECTURES: Mapping[str, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# Architecture key -> config.json key; the optional ones have a default or are checked below.
_REQUIRED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {"attention.head_count_kv", "attention.key_length", "attention.value_length"}
_OPTIONAL |= {"rope.freq_base", "rope.dimension_count", "rope.scaling.type", "vocab_size"}
# What llama.cpp takes for `rope.freq_base` where it is not given.
_DEFAULT_ROPE_THETA = 10000.0
_SPECIAL_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
# Every token at which llama.cpp ends a generation.
_END_TOKENS = ("eos", "eot", "eom")

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class RenamedTensor:
    """A tensor under its Hugging Face name.

    Attributes:
        stored: The tensor in the GGUF file.
        name: Its Hugging Face name.
        permuted_heads: Heads whose rows llama.cpp reordered for its rotary; 0 where it did not.
    """

    stored: GgufTensor
    name: str
    permuted_heads: int = 0


def config_from_gguf(header: GgufHeader) -> dict[str, object]:
    """config.json as Hugging Face would write it for this model.

    Raises:
        CheckpointError: Another architecture, a key that is missing, or one that is not supported.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise _refusal(
            header,
            f"general.architecture is {architecture!r}",
            hint=f"supported architectures: {', '.join(sorted(ARCHITECTURES))}",
            code="gguf-architecture",
        )
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in header.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    raise_all(_unsupported(header, architecture, own))
    heads = _integer(own, "attention.head_count")
    config: dict[str, object] = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        **{key: own[source] for source, key in _REQUIRED.items()},
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "rope_theta": own.get("rope.freq_base", _DEFAULT_ROPE_THETA),
        "vocab_size": _rows(header, "token_embd.weight"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": "float32",
        **_special_tokens(header),
    }
    if "attention.key_length" in own:
        config["head_dim"] = own["attention.key_length"]
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    return config


def generation_config_from_gguf(header: GgufHeader) -> dict[str, object]:
    """generation_config.json: the special tokens, with every token that ends a generation."""
    special = _special_tokens(header)
    ends = [_integer(header.metadata, f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    if len(distinct) > 1:
        special["eos_token_id"] = distinct
    return special


def renamed_tensors(header: GgufHeader) -> tuple[RenamedTensor, ...]:
    """Every tensor under its Hugging Face name, sorted by it.

    Raises:
        CheckpointError: A tensor is not known, or one that every such model has is missing.
    """
    layers = (
        _integer(header.metadata, f"{header.metadata['general.architecture']}.block_count") or 0
    )
    missing: list[CompilerError] = [
        _refusal(header, f"tensor '{name}' is missing", hint=None, code="missing-tensor")
        for name in _every_tensor(layers)
        if name not in header.tensors
    ]
    raise_all(missing)
    renamed = [_renamed(header, tensor, layers) for tensor in header.tensors.values()]
    return tuple(sorted(renamed, key=lambda tensor: tensor.name))


def _unsupported(
    header: GgufHeader, architecture: str, own: Mapping[str, MetadataValue]
) -> list[CompilerError]:
    errors: list[CompilerError] = [
        _refusal(header, f"metadata '{architecture}.{key}' is missing", hint=None, code="gguf-key")
        for key in _REQUIRED
        if key not in own
    ]
    for key, value in sorted(own.items()):
        is_known = key in _REQUIRED or key in _OPTIONAL
        if is_known and _is_plausible(key, value, own):
            continue
        errors.append(
            _refusal(
                header,
                f"metadata '{architecture}.{key}' is {value!r}, which is not supported",
                hint="the model would compute something else without it; "
                "use a checkpoint of a plain Llama or Qwen2 model",
                code="gguf-key",
            )
        )
    files = header.metadata.get("split.count", 0)
    if files not in (0, 1):
        errors.append(
            _refusal(
                header,
                f"the model is split over {files} files",
                hint="merge them first: llama-gguf-split --merge FIRST.gguf MERGED.gguf",
                code="gguf-split",
            )
        )
    return errors


def _is_plausible(key: str, value: MetadataValue, own: Mapping[str, MetadataValue]) -> bool:
    if key == "rope.scaling.type":
        return value == "none"
    if key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        return isinstance(value, float) and value > 0
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return False
    if key in ("rope.dimension_count", "attention.value_length"):
        return value == _head_dim(own)
    return True


def _head_dim(own: Mapping[str, MetadataValue]) -> int | None:
    given = _integer(own, "attention.key_length")
    hidden, heads = _integer(own, "embedding_length"), _integer(own, "attention.head_count")
    return given or (hidden // heads if hidden and heads else None)


def _special_tokens(header: GgufHeader) -> dict[str, object]:
    found = {
        key: _integer(header.metadata, f"tokenizer.ggml.{name}_token_id")
        for name, key in _SPECIAL_TOKENS.items()
    }
    return {key: token for key, token in found.items() if token is not None}


def _every_tensor(layers: int) -> list[str]:
    in_layers = [f"blk.{layer}.{part}.weight" for layer in range(layers) for part in _LAYER_NAMES]
    return ["token_embd.weight", *in_layers, "output_norm.weight"]


def _renamed(header: GgufHeader, tensor: GgufTensor, layers: int) -> RenamedTensor:
    if tensor.name in _TOP_NAMES:
        return RenamedTensor(tensor, _TOP_NAMES[tensor.name])
    match = _LAYER_TENSOR.fullmatch(tensor.name)
    if match is None or match[2] not in _LAYER_NAMES or int(match[1]) >= layers:
        raise _refusal(
            header,
            f"tensor '{tensor.name}' is not known in a model of {layers} layers",
            hint="the model would compute something else without it; "
            "use a checkpoint of a plain Llama or Qwen2 model",
            code="extra-tensor",
        )
    name = f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    return RenamedTensor(tensor, name, _permuted_heads(header, tensor, match[2]))


def _permuted_heads(header: GgufHeader, tensor: GgufTensor, part: str) -> int:
    """llama.cpp reorders the rows of Llama's Q and K (`LlamaModel.permute`), not of Qwen2's."""
    if header.metadata["general.architecture"] != "llama" or part not in ("attn_q", "attn_k"):
        return 0
    heads = _integer(header.metadata, "llama.attention.head_count") or 1
    if part == "attn_k":
        heads = _integer(header.metadata, "llama.attention.head_count_kv") or heads
    if tensor.shape[0] % (2 * heads):
        raise _refusal(
            header,
            f"tensor '{tensor.name}' has {tensor.shape[0]} rows, no even number for {heads} heads",
            hint=None,
            code="tensor-shape",
        )
    return heads


def _rows(header: GgufHeader, name: str) -> int:
    if name not in header.tensors:
        raise _refusal(header, f"tensor '{name}' is missing", hint=None, code="missing-tensor")
    return header.tensors[name].shape[0]


def _integer(values: Mapping[str, MetadataValue], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _refusal(header: GgufHeader, message: str, *, hint: str | None, code: str) -> CheckpointError:
    return CheckpointError(message, where=str(header.path), hint=hint, code=code)
