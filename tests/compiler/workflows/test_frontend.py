"""Checkpoints and .onnx files as programs, with the probe that `verify` asks for."""

from pathlib import Path

import pytest
from exported_models import write_export

from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import CheckpointError
from compiler.contracts.progress import Progress
from compiler.numerics.isomorphism import difference
from compiler.workflows import frontend
from compiler.workflows.frontend import Entered, enter, locate


@pytest.fixture
def onnx_yaml(tmp_path: Path) -> Path:
    write_export(tmp_path / "model.onnx")
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: model.onnx, type: onnx, shape: {input_ids: [[16], [48]]}}\n"
        "backend: {type: llvm}\n"
    )
    return path


def entered(config: BuildConfig) -> Entered:
    return enter(config, locate(config, progress=Progress()))


def test_an_onnx_file_is_imported_in_this_process(
    onnx_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend, "run_isolated", None)
    found = entered(load_config(onnx_yaml))
    assert [program.tokens for program in found.programs] == [16, 1]
    assert found.probe is not None
    assert found.probe.vocabulary < 80
    assert found.probe.programs.stored_bytes() < found.programs.stored_bytes()
    for phase, program in found.programs.programs.items():
        assert difference(program, found.probe.programs.programs[phase]) is None


def test_verify_decides_what_passes_are_measured_on(onnx_yaml: Path) -> None:
    for verify in ("off", "structure"):
        assert entered(load_config(onnx_yaml, overrides=[f"verify={verify}"])).probe is None
    model = entered(load_config(onnx_yaml, overrides=["verify=model"]))
    assert model.probe is not None
    assert model.probe.programs is model.programs
    assert model.probe.vocabulary == 80


def test_an_onnx_file_of_the_wrong_type_says_which_to_write(tmp_path: Path) -> None:
    write_export(tmp_path / "model.onnx")
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: model.onnx, type: huggingface, shape: {input_ids: [[16], []]}}\n"
        "backend: {type: llvm}\n"
    )
    with pytest.raises(CheckpointError, match="neither a folder") as caught:
        locate(load_config(path), progress=Progress())
    assert caught.value.hint == "write `type: onnx`"
