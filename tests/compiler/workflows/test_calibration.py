"""From a YAML's options to a model of calibrated weights, made once and kept in the cache."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_factory import write_checkpoint
from process_memory import peak_of
from program_runs import run_pass
from quantized_forms import set_groups
from reference_model import load_reference, reference_logits
from staged_models import POINTS, staged
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.checkpoints import LinearRecord
from compiler.checkpoints.calibrated_file import RECORD_FILE, TENSORS_FILE
from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import MachineLacks
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weight_values import chunks
from compiler.contracts.weights import CheckpointRef
from compiler.hashing import CACHE_VARIABLE
from compiler.stages import calibrate as calibrate_stage
from compiler.stages.checkpoint import locate_checkpoint
from compiler.stages.trace import trace
from compiler.workflows import calibration as calibration_module
from compiler.workflows import measurement_key as measurement_key_module
from compiler.workflows.calibration import calibrate_programs
from models.qwen2 import Qwen2
from targets.onnxruntime.runner import OnnxRuntimeRunner

TOKENS = np.random.default_rng(9).integers(0, VOCABULARY, (4, CONTEXT))
QUANTIZE = "{type: w8a16_gptq, calib_args: {bits: 4, group_size: 8, damping: 0.05}}"


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.layers: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: int, total: int, unit: str) -> None:
        assert unit == "layers"
        self.layers.append((done, total))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibrated"


def config_of(tmp_path: Path, *, quantize: str = QUANTIZE, dataset: str = "{}") -> BuildConfig:
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend:\n"
        "  checkpoint: checkpoint\n"
        "  type: huggingface\n"
        f"  shape: {{input_ids: [[{WINDOW}], [48]]}}\n"
        f"  quantize: {quantize}\n"
        "backend: {type: onnxruntime, dtype: int8}\n"
        f"dataset: {dataset}\n"
    )
    return load_config(path)


def model_of(traced_models: TracedModels, *, bits: int = 4, group: int = 8) -> ProgramModel:
    model = staged(traced_models, "own-head-dim", POINTS["int8"])
    for program in model.programs:
        set_groups(program, bits=bits, group=group)
    return model


def run(
    config: BuildConfig,
    model: ProgramModel,
    *,
    tokens: np.ndarray = TOKENS,
    checkpoint: CheckpointRef | None = None,
    progress: Progress | None = None,
) -> tuple[ProgramSet, CheckpointRef, tuple[LinearRecord, ...]]:
    found = calibrate_programs(
        config,
        checkpoint or model.checkpoint,
        model.programs,
        tokens,
        progress=progress or Progress(),
    )
    return found.applied(model.programs), found.checkpoint, found.linears


def bytes_of(programs: ProgramSet, checkpoint: CheckpointRef) -> dict[str, bytes]:
    """What packaging would write."""
    return {
        key: b"".join(block.tobytes() for block in chunks(weight, checkpoint.rows))
        for key, weight in programs.stored_weights().items()
    }


def float_weights(
    records: Sequence[LinearRecord], checkpoint: CheckpointRef
) -> dict[str, np.ndarray]:
    """The tensors of the file, multiplied out."""
    found: dict[str, np.ndarray] = {}
    for record in records:
        of_module = {
            name.partition("(")[0]: checkpoint.rows(name, 0, tensor.shape[0])
            for name, tensor in checkpoint.tensors.items()
            if "(" in name and f"({record.module}.weight" in name
        }
        codes, scales = of_module["quantize"], of_module["scale"]
        groups = codes.reshape(*scales.shape, -1) * scales[..., None]
        found[record.module] = groups.reshape(codes.shape).astype(np.float32)
    return found


def test_the_model_is_transformers_with_the_calibrated_weights(
    traced_models: TracedModels, tmp_path: Path, cache: Path
):
    model, progress = model_of(traced_models), Notes()
    config = config_of(tmp_path)
    programs, checkpoint, records = run(config, model, progress=progress)

    assert progress.layers == [(1, 2), (2, 2)]
    assert len(records) == 14
    for record in records:
        assert record.error < record.nearest_error < 0.1
        assert (record.damping, record.kept < record.channels) == (0.05, True)
    assert checkpoint.digest == model.checkpoint.digest
    assert set(model.checkpoint.tensors) < set(checkpoint.tensors)
    assert {tensor.file.parent.parent for n, tensor in checkpoint.tensors.items() if "@" in n} == {
        cache
    }

    reference = load_reference(model.checkpoint.path)
    for module, array in float_weights(records, checkpoint).items():
        linear = reference.get_submodule(module)
        assert isinstance(linear, torch.nn.Linear)
        linear.weight.data = torch.tensor(array)
    prompt = TOKENS[0, :20].tolist()
    wanted = reference_logits(reference, prompt)
    runner = OnnxRuntimeRunner(ProgramModel(programs, checkpoint))
    np.testing.assert_allclose(runner.extend(prompt[:19]), wanted[18], rtol=0, atol=1e-4)
    np.testing.assert_allclose(runner.extend(prompt[19:]), wanted[19], rtol=0, atol=1e-4)
    nearest = OnnxRuntimeRunner(model)
    assert np.abs(nearest.extend(prompt) - wanted[19]).max() > 1e-2


def test_a_second_build_takes_it_from_the_cache(
    traced_models: TracedModels, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    model, config = model_of(traced_models), config_of(tmp_path)
    programs, checkpoint, records = run(config, model)
    monkeypatch.delattr(calibration_module, "LayeredModel")
    again, other, known = run(config, model)
    assert known == records
    assert other.tensors == checkpoint.tensors
    assert again.stored_weights() == programs.stored_weights()
    assert len(list(cache.iterdir())) == 1


def test_equal_inputs_give_equal_bytes_and_keys(
    traced_models: TracedModels, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    model, config = model_of(traced_models), config_of(tmp_path)
    programs, checkpoint, _ = run(config, model)
    (one,) = cache.iterdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    again, anew, _ = run(config, model)
    (two,) = (tmp_path / "other" / "calibrated").iterdir()

    assert one.name == two.name
    for name in (TENSORS_FILE, RECORD_FILE):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert list(again.stored_weights()) == list(programs.stored_weights())
    assert bytes_of(again, anew) == bytes_of(programs, checkpoint)


def test_a_tensor_s_name_holds_its_content(
    traced_models: TracedModels, tmp_path: Path, cache: Path
):
    """Other data, other codes, another key: two bundles never mistake one for the other."""
    model, config = model_of(traced_models), config_of(tmp_path)
    one = run(config, model)[0].programs["decode"].weights
    two = run(config, model, tokens=TOKENS[:3])[0].programs["decode"].weights
    name = "model.layers.1.mlp.down_proj.weight"
    assert one[name].key != two[name].key
    assert one[name].key.startswith("file(quantize(model.layers.1.mlp.down_proj.weight, 4, 8)@")
    assert one[name].sources() == two[name].sources() == (name,)
    assert one["model.norm.weight"] == two["model.norm.weight"]


@pytest.mark.parametrize("change", ["tokens", "order", "option", "checkpoint", "bits", "tools"])
def test_what_decides_is_in_the_key(
    traced_models: TracedModels,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
):
    model, config, tokens = model_of(traced_models), config_of(tmp_path), TOKENS
    made: list[Path] = []
    monkeypatch.setattr(
        calibration_module, "_fill", lambda folder, *rest, **options: made.append(folder)
    )

    def attempt() -> None:
        # What stands in for the work writes nothing.
        with pytest.raises(OSError, match=TENSORS_FILE):
            run(config, model, tokens=tokens, checkpoint=checkpoint)

    checkpoint = model.checkpoint
    attempt()
    attempt()
    assert made[0] == made[1]
    match change:
        case "tokens":
            tokens = TOKENS + (TOKENS == 0)
        case "order":
            tokens = TOKENS.reshape(8, -1)
        case "option":
            config = config_of(tmp_path, quantize=QUANTIZE.replace("0.05", "0.06"))
        case "checkpoint":
            checkpoint = replace(checkpoint, digest="another")
        case "bits":
            model = model_of(traced_models, bits=8)
        case _:
            monkeypatch.setattr(measurement_key_module, "tool_versions", lambda: {"torch": "0"})
    attempt()
    assert made[2] != made[0]


@pytest.mark.parametrize("damage", ["byte", "short", "record", "unreadable", "gone"])
def test_a_damaged_entry_is_made_anew(
    traced_models: TracedModels, tmp_path: Path, cache: Path, damage: str
):
    model, config, progress = model_of(traced_models), config_of(tmp_path), Notes()
    programs, checkpoint, records = run(config, model)
    wanted = bytes_of(programs, checkpoint)
    (folder,) = cache.iterdir()
    tensors, record = folder / TENSORS_FILE, folder / RECORD_FILE
    content = tensors.read_bytes()
    match damage:
        case "byte":
            tensors.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "short":
            tensors.write_bytes(content[:-9])
        case "record":
            parsed = json.loads(record.read_text())
            parsed["linears"][0]["module"] = 7
            del parsed["tensors"][next(iter(parsed["tensors"]))]
            record.write_text(json.dumps(parsed))
        case "unreadable":
            record.write_text("[")
        case _:
            record.unlink()
    again, anew, known = run(config, model, progress=progress)
    assert len(progress.layers) == 2
    assert known == records
    assert bytes_of(again, anew) == wanted


def test_what_fails_leaves_nothing(
    traced_models: TracedModels, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate_stage, "factored", fail)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(tmp_path), model_of(traced_models))
    assert list(cache.iterdir()) == []


def test_a_device_that_is_not_there_is_refused_at_its_place(
    traced_models: TracedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = config_of(tmp_path, quantize="{type: w8a16_gptq, device: cuda}")
    with pytest.raises(MachineLacks, match="cuda is asked for") as caught:
        run(config, model_of(traced_models))
    assert str(caught.value.where).endswith("model.yaml:5:40")


CALIBRATE = """
import pickle, sys
from pathlib import Path
import numpy as np
from compiler.config import load_config
from compiler.contracts.progress import Progress
from compiler.workflows.calibration import calibrate_programs
programs, checkpoint = pickle.loads(Path(sys.argv[1]).read_bytes())
tokens = np.random.default_rng(0).integers(0, 80, (2, 32))
calibrate_programs(
    load_config(Path(sys.argv[2])), checkpoint, programs, tokens, progress=Progress()
)
"""


def peak_of_calibrating(folder: Path, layers: int) -> int:
    """Of a process that calibrates a model of so many layers, each 7 MB in float32."""
    place = folder / str(layers)
    write_checkpoint(
        place / "checkpoint", hidden=512, layers=layers, intermediate=512, vocabulary=80
    )
    checkpoint = locate_checkpoint(str(place / "checkpoint"), base=place)
    programs = trace(Qwen2(), checkpoint, window=16, context=32)
    for program in programs:
        for rewriting in POINTS["int8"]:
            if program.phase in rewriting.phases:
                run_pass(rewriting, program)
    (place / "programs").write_bytes(pickle.dumps((programs, checkpoint)))
    config = config_of(place, quantize="{type: w8a16_gptq}")
    script, output = place / "calibrate.py", place / "output"
    script.write_text(CALIBRATE)
    command = [sys.executable, str(script), str(place / "programs"), str(config.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with output.open("wb") as stream:
        running = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        return peak_of(running, output)


@pytest.mark.slow
def test_memory_holds_one_layer(tmp_path: Path, cache: Path):
    """Sixteen layers more are 117 MB of weights."""
    few, many = (peak_of_calibrating(tmp_path, layers) for layers in (2, 18))
    assert len(list(cache.iterdir())) == 2
    assert many - few < 40e6, f"{few / 1e6:.0f} MB, then {many / 1e6:.0f} MB"
