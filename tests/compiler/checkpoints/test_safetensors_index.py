import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import write_checkpoint, write_safetensors
from disk_state import files_below

from compiler.checkpoints.safetensors_index import INDEX_FILE, tensors_of_folder
from compiler.contracts.errors import CheckpointError, CompilerError, CompilerErrors

NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", shards=3)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    change(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


def refusal(folder: Path) -> CompilerError:
    before = files_below(folder)
    with pytest.raises(CompilerError) as caught:
        tensors_of_folder(folder)
    assert files_below(folder) == before
    return caught.value


def test_shards_hold_the_same_tensors_as_one_file(folder: Path, tmp_path: Path):
    single = tensors_of_folder(write_checkpoint(tmp_path / "single"))
    sharded = tensors_of_folder(folder)
    assert sharded.keys() == single.keys()
    assert len({tensor.file for tensor in sharded.values()}) == 3
    for name, tensor in single.items():
        rows = tensor.shape[0]
        assert np.array_equal(sharded[name].rows(0, rows), tensor.rows(0, rows))


def test_one_file_is_taken_before_an_index(folder: Path):
    write_safetensors(folder / "model.safetensors", {"only": np.ones((2, 2), np.float32)})
    assert list(tensors_of_folder(folder)) == ["only"]


def test_shards_may_be_links_as_in_the_hub_cache(folder: Path, tmp_path: Path):
    blob = tmp_path / "blobs"
    blob.mkdir()
    shard = folder / "model-00001-of-00003.safetensors"
    shard.rename(blob / "abc")
    shard.symlink_to("../blobs/abc")
    assert len(tensors_of_folder(folder)) == 27


def test_a_missing_shard_is_named_with_a_tensor(folder: Path):
    (folder / "model-00002-of-00003.safetensors").unlink()
    error = refusal(folder)
    assert error.message == (
        "the shard model-00002-of-00003.safetensors is missing; "
        "tensor 'model.layers.0.input_layernorm.weight' should be in it"
    )
    assert error.where == str(folder / INDEX_FILE)


def test_a_truncated_shard_is_named_with_a_tensor(folder: Path):
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    error = refusal(folder)
    size = shard.stat().st_size
    assert error.where == str(shard)
    assert (
        error.message == f"the file ends at byte {size}, tensor 'lm_head.weight' needs {size + 1}"
    )


def test_a_tensor_that_its_shard_lacks(folder: Path):
    change_index(folder, lambda placed: placed.update(ghost="model-00001-of-00003.safetensors"))
    error = refusal(folder)
    assert error.message == "tensor 'ghost' is not in the shard that the index names"
    assert error.where == str(folder / "model-00001-of-00003.safetensors")


def test_a_tensor_that_the_index_lacks(folder: Path):
    change_index(folder, lambda placed: placed.pop(NORM))
    error = refusal(folder)
    assert error.message == f"tensor '{NORM}' is not in the index"
    assert error.where is not None
    assert error.where.startswith(str(folder / "model-0000"))


def test_a_tensor_in_two_shards(folder: Path):
    write_safetensors(folder / "twice.safetensors", {NORM: np.ones(64, np.float32)})
    home = json.loads((folder / INDEX_FILE).read_text())["weight_map"][NORM]
    extra = {"other": np.ones(4, np.float32), NORM: np.ones(64, np.float32)}
    write_safetensors(folder / "twice.safetensors", extra)
    change_index(folder, lambda placed: placed.update(other="twice.safetensors"))
    error = refusal(folder)
    assert error.message == f"tensor '{NORM}' is a second one; the index names {home}"
    assert error.where == str(folder / "twice.safetensors")


def test_all_disagreements_of_the_index_are_said_at_once(folder: Path):
    change_index(folder, lambda placed: placed.pop(NORM))
    change_index(folder, lambda placed: placed.update(ghost="model-00001-of-00003.safetensors"))
    error = refusal(folder)
    assert isinstance(error, CompilerErrors)
    assert [part.code for part in error.errors] == ["missing-tensor", "extra-tensor"]


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "a/../../b", "a\\b", "", "a\0b", 3, None]
)
def test_a_shard_outside_the_folder_is_refused(folder: Path, shard: str):
    write_safetensors(folder.parent / "outside.safetensors", {NORM: np.ones(64, np.float32)})
    change_index(folder, lambda placed: placed.update({NORM: shard}))
    error = refusal(folder)
    assert (
        error.message == f"tensor '{NORM}' is placed in {shard!r}, which is no file of the folder"
    )


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_a_map(folder: Path, text: str):
    (folder / INDEX_FILE).write_text(text)
    assert refusal(folder).message == "the index has no 'weight_map'"


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "m.pt", "m.pth", "m.ckpt", "tf_model.h5", "flax_model.msgpack", "M.BIN"],
)
def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path, name: str):
    folder = tmp_path / "it's old"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    error = refusal(folder)
    assert error.code == "pickled-checkpoint"
    assert error.message.startswith(f"{name} is a pickled or foreign checkpoint")
    assert error.hint is not None
    assert "python -c " in error.hint
    assert not (tmp_path / "owned").exists()


def test_the_command_that_converts_is_one_argument_of_valid_python(tmp_path: Path):
    import shlex

    folder = tmp_path / "it's old"
    folder.mkdir()
    (folder / "pytorch_model.bin").touch()
    hint = refusal(folder).hint
    assert hint is not None
    command = hint.split("to safetensors: ")[1].split("; then name")[0]
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    assert len(words) == 3
    compile(words[2], "hint", "exec")


def test_a_folder_without_weights(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        tensors_of_folder(tmp_path)
    assert caught.value.message == (
        "the folder holds neither model.safetensors nor model.safetensors.index.json"
    )


def test_a_folder_of_a_gguf_file_points_to_the_file(tmp_path: Path):
    (tmp_path / "m.gguf").touch()
    assert refusal(tmp_path).hint == f"name the GGUF file itself: {tmp_path / 'm.gguf'}"
