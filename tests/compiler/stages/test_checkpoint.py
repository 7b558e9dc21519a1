import hashlib
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from checkpoint_factory import change_config, write_checkpoint
from disk_state import files_below
from gguf_factory import GgufOptions, write_gguf

from compiler.checkpoints import gguf_convert
from compiler.contracts.errors import CheckpointError, CompilerError
from compiler.contracts.weights import CheckpointRef
from compiler.stages.checkpoint import locate_checkpoint, verify_tensors
from models.llama import Llama
from models.qwen2 import Qwen2

SUPPORTED = ("llama", "qwen2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "work" / "tiny")


def locate(path: Path, *, base: Path = Path("/")) -> CheckpointRef:
    return locate_checkpoint(str(path), base=base, supported=SUPPORTED)


def refusal(reference: str, base: Path, cache: Path) -> CompilerError:
    before = files_below(base), files_below(cache)
    with pytest.raises(CompilerError) as caught:
        locate_checkpoint(reference, base=base, supported=SUPPORTED)
    assert (files_below(base), files_below(cache)) == before
    return caught.value


# -- where a reference leads


def test_a_folder_relative_to_the_yaml(folder: Path):
    found = locate_checkpoint("tiny", base=folder.parent, supported=SUPPORTED)
    assert found.path == folder
    assert found.config["model_type"] == "qwen2"
    assert found.tensors["model.embed_tokens.weight"].shape == (128, 64)
    assert len(found.tensors) == 27
    assert found.rows("model.norm.weight", 0, 64).shape == (64,)
    verify_tensors(found, Qwen2())


def test_a_folder_below_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate_checkpoint("~/tiny", base=Path("/nowhere")).path == folder


def test_the_digest_is_that_of_the_contents(folder: Path, tmp_path: Path):
    lines = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    )
    assert locate(folder).digest == hashlib.sha256(lines.encode()).hexdigest()
    assert locate(write_checkpoint(tmp_path / "again")).digest == locate(folder).digest
    assert locate(write_checkpoint(tmp_path / "other", seed=1)).digest != locate(folder).digest


def test_a_change_of_the_configuration_changes_the_digest(folder: Path):
    before = locate(folder).digest
    change_config(folder, rms_norm_eps=1e-5)
    assert locate(folder).digest != before


@pytest.mark.parametrize(
    "write",
    [
        partial(write_checkpoint, tied=True, dtype="bfloat16"),
        partial(write_checkpoint, dtype="float16", shards=4),
        partial(write_checkpoint, heads=7, kv_heads=1, head_dim=32, hidden=96),
        partial(write_checkpoint, layers=1, kv_heads=4),
    ],
)
def test_what_the_factory_writes_is_whole(tmp_path: Path, write: Callable[[Path], Path]):
    verify_tensors(locate(write(tmp_path / "m")), Qwen2())


def test_a_gguf_file_is_converted(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_convert, "_save_tokenizer", lambda path, folder: None)
    path = write_gguf(tmp_path / "m.gguf")
    found = locate(path)
    assert found.path.parent == cache / "gguf"
    assert found.config["model_type"] == "llama"
    verify_tensors(found, Llama())
    assert locate(path).digest == found.digest


def test_nothing_heavy_is_imported(folder: Path):
    script = (
        "import sys; from pathlib import Path; "
        "from compiler.stages.checkpoint import locate_checkpoint as f; "
        "f(sys.argv[1], base=Path('/')); "
        "heavy = {'torch', 'transformers', 'tvm', 'onnx', 'onnxruntime', 'gguf', 'safetensors'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


# -- what is refused, with the disk as it was


def test_an_unsupported_model_type_lists_those_that_are(folder: Path, cache: Path):
    change_config(folder, model_type="qwen4")
    error = refusal("tiny", folder.parent, cache)
    assert error.message == "model_type 'qwen4' is not supported"
    assert error.hint == "did you mean 'qwen2'? supported: llama, qwen2"
    assert error.where == str(folder / "config.json")


def test_code_of_a_checkpoint_is_named_and_not_run(folder: Path, cache: Path):
    change_config(folder, model_type="mystery", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('this must never run')")
    error = refusal("tiny", folder.parent, cache)
    assert error.message == (
        "model_type 'mystery' is not supported; "
        "its auto_map names code of the checkpoint's own, which is never run"
    )


def test_code_of_a_supported_model_is_ignored(folder: Path):
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('this must never run')")
    verify_tensors(locate(folder), Qwen2())


def test_a_gguf_of_an_unsupported_type_is_not_converted(tmp_path: Path, cache: Path):
    write_gguf(tmp_path / "m.gguf", GgufOptions(architecture="llama"))
    with pytest.raises(CheckpointError) as caught:
        locate_checkpoint("m.gguf", base=tmp_path, supported=("qwen2",))
    assert caught.value.message == "model_type 'llama' is not supported"
    assert caught.value.where == str(tmp_path / "m.gguf")
    assert not cache.exists()


def test_an_already_quantized_checkpoint(folder: Path, cache: Path):
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    error = refusal("tiny", folder.parent, cache)
    assert error.message == "the checkpoint is already quantized (gptq)"


def test_a_configuration_that_is_not_json(folder: Path, cache: Path):
    (folder / "config.json").write_text('{\n  "model_type": qwen2\n}')
    error = refusal("tiny", folder.parent, cache)
    assert error.message == "not JSON: Expecting value"
    assert error.where == f"{folder / 'config.json'}:2:17"


@pytest.mark.parametrize("model_type", [None, 3, ["qwen2"]])
def test_a_model_type_that_is_no_name(folder: Path, cache: Path, model_type: object):
    change_config(folder, model_type=model_type)
    error = refusal("tiny", folder.parent, cache)
    assert error.message == f"'model_type' is {model_type!r}, not a name"


def test_a_folder_without_a_configuration(folder: Path, cache: Path):
    (folder / "config.json").unlink()
    assert refusal("tiny", folder.parent, cache).message == "the folder holds no config.json"


def test_a_folder_of_pickles_only(folder: Path, cache: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refusal("tiny", folder.parent, cache)
    assert error.code == "pickled-checkpoint"
    assert error.where == str(folder / "pytorch_model.bin")


def test_a_folder_of_a_pickle_alone(tmp_path: Path, cache: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "weights.ckpt").touch()
    assert refusal("old", tmp_path, cache).code == "pickled-checkpoint"


def test_a_folder_of_a_gguf_file_alone(tmp_path: Path, cache: Path):
    (tmp_path / "models").mkdir()
    path = write_gguf(tmp_path / "models" / "m.gguf")
    error = refusal("models", tmp_path, cache)
    assert error.hint == f"name the GGUF file itself: {path}"


def test_a_pickle_named_itself(folder: Path, cache: Path):
    (folder / "model.pt").touch()
    assert refusal("tiny/model.pt", folder.parent, cache).code == "pickled-checkpoint"


def test_a_weight_file_named_itself(folder: Path, cache: Path):
    error = refusal("tiny/model.safetensors", folder.parent, cache)
    assert error.message == "model.safetensors is neither a folder nor a .gguf file"
    assert error.hint == f"name the folder that holds it: {folder}"


def test_a_path_that_does_not_exist(folder: Path, cache: Path):
    error = refusal("tinny", folder.parent, cache)
    assert error.message == "there is no such checkpoint"
    assert error.hint == f"did you mean {folder}?"


def test_a_name_of_the_hub_is_not_downloaded(tmp_path: Path, cache: Path):
    error = refusal("Qwen/Qwen1.5-0.5B", tmp_path, cache)
    assert error.hint is not None
    assert error.hint.startswith(
        "nothing is downloaded from the Hub: hf download Qwen/Qwen1.5-0.5B"
    )


def test_a_home_folder_of_nobody(tmp_path: Path, cache: Path):
    error = refusal("~nobody-of-this-name/m", tmp_path, cache)
    assert error.where == "~nobody-of-this-name/m"


def test_a_file_that_cannot_be_read(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError) as caught:
        locate(folder)
    assert caught.value.message == "the checkpoint cannot be read: Permission denied"
    assert caught.value.where == str(folder / "config.json")
    assert not cache.exists()


def test_a_truncated_weight_file(folder: Path, cache: Path):
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    error = refusal("tiny", folder.parent, cache)
    assert error.where == str(weights)
    assert error.message == (
        f"the file ends at byte {size - 1}, tensor 'lm_head.weight' needs {size}"
    )
