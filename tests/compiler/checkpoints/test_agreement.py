from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import change_config, change_tensors, write_checkpoint
from disk_state import files_below

from compiler.checkpoints import agreement
from compiler.contracts.errors import CompilerError, CompilerErrors
from compiler.stages.checkpoint import locate_checkpoint, verify_tensors
from models.qwen2 import Qwen2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "work" / "tiny")


def verify(folder: Path) -> None:
    verify_tensors(locate_checkpoint(str(folder), base=Path("/")), Qwen2())


def disagreements(folder: Path) -> list[CompilerError]:
    before = files_below(folder)
    with pytest.raises(CompilerError) as caught:
        verify(folder)
    assert files_below(folder) == before
    error = caught.value
    return list(error.errors) if isinstance(error, CompilerErrors) else [error]


def test_a_missing_tensor(folder: Path):
    change_tensors(folder, {"model.layers.1.self_attn.k_proj.bias": None})
    (error,) = disagreements(folder)
    assert error.message == "tensor 'model.layers.1.self_attn.k_proj.bias' [32] is missing"
    assert error.where == f"{folder}: model.layers.1.self_attn.k_proj.bias"


def test_an_extra_tensor(folder: Path):
    change_tensors(folder, {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)})
    (error,) = disagreements(folder)
    assert error.message == (
        "tensor 'model.layers.0.self_attn.q_norm.weight' [16] is no part of the model"
    )
    assert error.where == (
        f"{folder / 'model.safetensors'}: model.layers.0.self_attn.q_norm.weight"
    )


def test_a_wrong_shape_of_one_tensor(folder: Path):
    change_tensors(folder, {"model.layers.0.mlp.up_proj.weight": np.ones((96, 65), np.float32)})
    (error,) = disagreements(folder)
    assert error.message == (
        "tensor 'model.layers.0.mlp.up_proj.weight' has the shape [96, 65], "
        "config.json calls for [96, 64]"
    )
    assert error.where == f"{folder / 'model.safetensors'}: model.layers.0.mlp.up_proj.weight"
    assert error.hint == (
        "config.json and the weights are of different models: download both again"
    )


def test_disagreements_of_all_kinds_are_said_at_once(folder: Path):
    changed = {
        "model.norm.weight": np.ones(63, np.float32),
        "model.layers.0.self_attn.q_proj.bias": None,
        "model.extra": np.ones(2, np.float32),
    }
    change_tensors(folder, changed)
    codes = [error.code for error in disagreements(folder)]
    assert codes == ["missing-tensor", "extra-tensor", "tensor-shape"]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("intermediate_size", 128, "'intermediate_size' is 128, the tensors are those of 96"),
        ("vocab_size", 130, "'vocab_size' is 130, the tensors are those of 128"),
        ("num_hidden_layers", 3, "'num_hidden_layers' is 3, the tensors are those of 2"),
        ("num_hidden_layers", 1, "'num_hidden_layers' is 1, the tensors are those of 2"),
        ("num_key_value_heads", 4, "'num_key_value_heads' is 4, the tensors are those of 2"),
        (
            "tie_word_embeddings",
            False,
            "'tie_word_embeddings' is false, the tensors are those of true",
        ),
    ],
)
def test_the_key_that_disagrees_is_named(tmp_path: Path, key: str, value: int, hint: str):
    folder = write_checkpoint(tmp_path / "m", tied=True)
    change_config(folder, **{key: value})
    errors = disagreements(folder)
    assert {error.hint for error in errors} == {f"config.json: {hint}"}
    assert all(error.where is not None and str(folder) in error.where for error in errors)


def test_keys_that_explain_it_equally_are_both_named(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "m", head_dim=16, heads=4, kv_heads=4)
    change_config(folder, head_dim=32, num_attention_heads=4)
    hints = {error.hint for error in disagreements(folder)}
    assert hints == {"config.json: 'head_dim' is 32, the tensors are those of 16"}


def test_hundreds_of_disagreements_are_counted(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "m")
    change_config(folder, num_hidden_layers=40)
    errors = disagreements(folder)
    assert len(errors) == 21
    assert errors[-1].message == (
        "436 more tensors are missing, up to 'model.layers.9.self_attn.v_proj.weight'"
    )
    assert {error.hint for error in errors} == {
        "config.json: 'num_hidden_layers' is 40, the tensors are those of 2"
    }


def test_what_the_family_does_not_support_names_the_file(folder: Path):
    change_config(folder, hidden_act="gelu", rope_scaling={"type": "llama3"})
    errors = disagreements(folder)
    assert len(errors) == 2
    for error in errors:
        assert error.where is not None
        assert error.where.startswith(str(folder / "config.json"))


def test_rotary_buffers_of_old_exports_are_ignored(folder: Path):
    change_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    verify(folder)


@pytest.mark.parametrize("chunk_bytes", [1 << 26, 4096, 4])
def test_a_head_stored_beside_tied_embeddings_must_be_equal(
    tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(agreement, "CHUNK_BYTES", chunk_bytes)
    folder = write_checkpoint(tmp_path / "m", tied=True, vocabulary=300)
    checkpoint = locate_checkpoint(str(folder), base=Path("/"))
    embedding = checkpoint.tensors["model.embed_tokens.weight"].rows(0, 300)
    change_tensors(folder, {"lm_head.weight": embedding})
    verify(folder)

    changed = embedding.copy()
    changed[299, 63] += 1
    change_tensors(folder, {"lm_head.weight": changed})
    (error,) = disagreements(folder)
    assert error.code == "tied-head"
    assert error.where == f"{folder / 'model.safetensors'}: lm_head.weight"

    change_tensors(folder, {"lm_head.weight": embedding[:299]})
    assert [error.code for error in disagreements(folder)] == ["tied-head"]

    change_tensors(folder, {"lm_head.weight": embedding.astype(np.float16)})
    assert [error.code for error in disagreements(folder)] == ["tied-head"]
