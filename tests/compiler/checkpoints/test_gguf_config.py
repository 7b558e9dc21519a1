from pathlib import Path

import numpy as np
import pytest
from disk_state import files_below
from gguf_factory import HIDDEN, IM_END, IM_START, LAYERS, TOKENS, GgufOptions, write_gguf

from compiler.checkpoints.gguf_config import (
    config_from_gguf,
    generation_config_from_gguf,
    renamed_tensors,
)
from compiler.checkpoints.gguf_header import read_gguf_header
from compiler.contracts.errors import CompilerError, CompilerErrors


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def read(path: Path) -> None:
    header = read_gguf_header(path)
    config_from_gguf(header)
    renamed_tensors(header)


def refusal(path: Path) -> CompilerError:
    before = files_below(path.parent)
    with pytest.raises(CompilerError) as caught:
        read(path)
    assert files_below(path.parent) == before
    return caught.value


def test_the_configuration(tmp_path: Path):
    options = GgufOptions(integers={"llama.attention.key_length": 16, "llama.vocab_size": 9})
    config = config_from_gguf(read_gguf_header(write_gguf(tmp_path / "m.gguf", options)))
    assert config.pop("rms_norm_eps") == float(np.float32(1e-5))
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 256,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 50000.0,
        "vocab_size": len(TOKENS),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": IM_START,
        "eos_token_id": IM_END,
        "attention_bias": False,
        "mlp_bias": False,
    }


def test_an_output_tensor_means_untied(tmp_path: Path):
    options = GgufOptions(architecture="qwen2", is_tied=False)
    config = config_from_gguf(read_gguf_header(write_gguf(tmp_path / "m.gguf", options)))
    assert config["tie_word_embeddings"] is False
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert "attention_bias" not in config


def test_every_end_token_ends_a_generation(tmp_path: Path):
    plain = read_gguf_header(write_gguf(tmp_path / "a.gguf"))
    assert generation_config_from_gguf(plain) == {"bos_token_id": IM_START, "eos_token_id": IM_END}
    ends = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.padding_token_id": 4}
    more = read_gguf_header(write_gguf(tmp_path / "b.gguf", GgufOptions(integers=ends)))
    assert generation_config_from_gguf(more) == {
        "bos_token_id": IM_START,
        "eos_token_id": [IM_END, 3],
        "pad_token_id": 4,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GgufOptions(architecture="gemma"), "general.architecture is 'gemma'"),
        (GgufOptions(extra=("rope_freqs.weight",)), "tensor 'rope_freqs.weight' is not known"),
        (GgufOptions(extra=("blk.7.attn_q.bias",)), "tensor 'blk.7.attn_q.bias' is not known"),
        (GgufOptions(extra=("blk.0.ssm.weight",)), "tensor 'blk.0.ssm.weight' is not known"),
        (GgufOptions(without=("blk.1.ffn_up.weight",)), "tensor 'blk.1.ffn_up.weight' is missing"),
        (GgufOptions(without=("token_embd.weight",)), "tensor 'token_embd.weight' is missing"),
        (
            GgufOptions(integers={"llama.expert_count": 8}),
            "metadata 'llama.expert_count' is 8, which is not supported",
        ),
        (
            GgufOptions(integers={"llama.rope.dimension_count": 8}),
            "metadata 'llama.rope.dimension_count' is 8, which is not supported",
        ),
        (
            GgufOptions(strings={"llama.rope.scaling.type": "yarn"}),
            "metadata 'llama.rope.scaling.type' is 'yarn', which is not supported",
        ),
        (GgufOptions(integers={"split.count": 3}), "the model is split over 3 files"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    plain: Path, options: GgufOptions, message: str
):
    error = refusal(write_gguf(plain, options))
    assert error.message.startswith(message)
    assert error.where == str(plain)


def test_an_unknown_architecture_lists_those_supported(plain: Path):
    error = refusal(write_gguf(plain, GgufOptions(architecture="gemma")))
    assert error.hint == "supported architectures: llama, qwen2"


def test_all_missing_keys_are_said_at_once(plain: Path):
    content = write_gguf(plain).read_bytes()
    for name in (b"llama.block_count", b"llama.embedding_length"):
        content = content.replace(name, name[:-1] + b"!")
    plain.write_bytes(content)
    error = refusal(plain)
    assert isinstance(error, CompilerErrors)
    messages = [part.message for part in error.errors]
    assert messages[:2] == [
        "metadata 'llama.block_count' is missing",
        "metadata 'llama.embedding_length' is missing",
    ]
