"""A fault in each step of the way in turn: the ladder names the step, the layer and the tap."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import built_bundles
import planted_faults
import pytest
import yaml
from built_bundles import TinyModel, in_this_process, write_tiny, write_yaml
from compiler_process import ROOT
from torch import nn

from compiler.cli import main
from compiler.contracts.errors import TargetError
from compiler.contracts.program import Program, tidy
from compiler.contracts.target_base import Lowered, TargetOptions
from compiler.relax import FusedConverter, relax_from_program
from models.qwen2 import Qwen2
from targets.llvm import lower, lowered
from targets.llvm.target import LLVMTarget

LAYERS = 6
MODEL = TinyModel(layers=LAYERS, window=16, context=32)
FAULTS = ROOT / "tests" / "ladder_faults.py"
TARGET = "target: tvm_llvm"
TRACE, PASSES = "trace", "passes: keep-qkv-bias to insert-strided-slice"
FUSED = "target's passes: fuse-attention to fuse-silu-mul"
# Every weight is stored once; with float32 that changes nothing, and is the target's.
FUSED_AND_STORED = "target's passes: fuse-attention to store-weights"
STORED = "dtype cast: store-weights to store-kv-cache"


@dataclass(frozen=True)
class Case:
    """A fault of one step.

    Attributes:
        replaced: The pass that a faulty copy stands for; empty: the copy is added.
        faulty: Of `ladder_faults`.
        step: Name of the step that must be found.
        steps: Names of all steps.
        point: The tap.
        options: Of the faulty copy, but its layer.
        dtype: `backend.dtype`.
        max_local: Of the YAML; None: that of the dtype.
    """

    replaced: str
    faulty: str
    step: str
    steps: tuple[str, ...]
    point: str
    options: tuple[tuple[str, str], ...] = ()
    dtype: str = "fp32"
    max_local: float | None = None


CASES = {
    "a pass of the user": Case(
        "",
        "LoseBias",
        PASSES,
        (TRACE, PASSES, FUSED_AND_STORED),
        "v",
    ),
    "a pass of the target": Case(
        "fuse-rms-norm",
        "SmoothNorm",
        FUSED_AND_STORED,
        (TRACE, PASSES, FUSED_AND_STORED),
        "norm2",
    ),
    "the dtype of weights": Case(
        "store-weights",
        "SwapStored",
        STORED,
        (TRACE, PASSES, FUSED, STORED),
        "v",
        (("dtype", "bfloat16"),),
        "bf16",
    ),
    "the dtype of arithmetic": Case(
        "",
        "CastAway",
        "dtype cast: cast-dtype",
        (
            TRACE,
            PASSES,
            FUSED,
            "dtype cast: cast-dtype",
            "target's passes: store-weights",
            "dtype cast: store-kv-cache",
        ),
        "v",
        (("dtype", "bfloat16"),),
        "bf16",
    ),
    "quantization": Case(
        "",
        "DoubleScale",
        "quantization: annotate-int8-qdq",
        (TRACE, PASSES, "quantization: annotate-int8-qdq", FUSED_AND_STORED),
        "down",
        max_local=0.05,
    ),
}


def drawn_layer(seed: str) -> int:
    return random.Random(seed).randrange(LAYERS)


def write_model(folder: Path, case: Case | None = None, *, layer: int = 0) -> Path:
    """The YAML, with the case's fault."""
    checkpoint = write_tiny(folder / "checkpoint", MODEL)
    path = write_yaml(folder / "model.yaml", MODEL, checkpoint)
    tree = yaml.safe_load(path.read_text())
    tree["verify"] = "off"
    if case is not None:
        faulty = f"{FAULTS}:{case.faulty}"
        options = {"layer": layer, **dict(case.options)}
        changed = {"pass": faulty, "options": options} | _PLACES.get(case.faulty, {})
        tree["passes"] = (
            {"replace": {case.replaced: {faulty: options}}} if case.replaced else {"add": [changed]}
        )
        tree["backend"]["dtype"] = case.dtype
        # Which passes the target adds depends on the CPU that it builds for.
        tree["backend"]["compile"] = {"features": ["avx2", "f16c", "fma"]}
        tree["compare"] = {} if case.max_local is None else {"max_local": case.max_local}
    path.write_text(json.dumps(tree))
    (folder / "prompts.txt").write_text("t1 t2 t3")
    return path


_PLACES = {
    "LoseBias": {"after": "fold-mask"},
    "CastAway": {"before": "store-weights"},
    "DoubleScale": {"after": "insert-strided-slice"},
}


def climbed(capsys: pytest.CaptureFixture[str], path: Path, target: str) -> dict:
    prompts = str(path.parent / "prompts.txt")
    targets = ["--targets", f"torch,{target}", "--ladder", "--json"]
    with in_this_process():
        main(["compare", str(path), *targets, "--tokens", "2", "--prompts", prompts])
    ladder = json.loads(capsys.readouterr().out)["ladder"]
    assert ladder["reference"] == "torch"
    assert sum(step["share"] for step in ladder["steps"]) == pytest.approx(1.0, rel=1e-9)
    return ladder


def check(ladder: dict, step: str, layer: int, point: str, *, how: str = "wrong by itself") -> None:
    found = (ladder["largest"], ladder["layer"], ladder["point"])
    assert found == (step, layer, point), ladder["said"]
    assert ladder["said"].startswith(f"{step} changes the logits most (by ")
    assert f"model.layers.{layer}/{point} is the first tap that is {how}" in ladder["said"]
    sizes = {one["name"]: one["rms"] for one in ladder["steps"]}
    others = [size for name, size in sizes.items() if name != step]
    assert sizes[step] > 5 * max(others)


def names(ladder: dict) -> list[str]:
    return [step["name"] for step in ladder["steps"]]


@pytest.mark.parametrize("name", CASES)
def test_a_pass_is_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    case, layer = CASES[name], drawn_layer(name)
    ladder = climbed(capsys, write_model(tmp_path, case, layer=layer), "onnxruntime")
    assert names(ladder) == list(case.steps)
    check(ladder, case.step, layer, case.point)


def test_the_trace_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer is a kind of its own, whose first norm has another epsilon."""
    layer = drawn_layer("trace")
    kinds, module = Qwen2.layer_kinds, Qwen2.module

    def faulty_kinds(self: Qwen2, config: dict[str, object]) -> tuple[str, ...]:
        found = list(kinds(self, config))
        found[layer] = "faulty"
        return tuple(found)

    def faulty_module(self: Qwen2, config: dict[str, object], given: Sequence[str]) -> nn.Module:
        made = module(self, config, given)
        layers = made.get_submodule("model.layers")
        for kind, one in zip(given, layers.children(), strict=True):
            if kind == "faulty":
                one.get_submodule("input_layernorm").epsilon = 0.5  # type: ignore[assignment]
        return made

    monkeypatch.setattr(Qwen2, "layer_kinds", faulty_kinds)
    monkeypatch.setattr(Qwen2, "module", faulty_module)
    monkeypatch.setattr(built_bundles, "_TRACED", {})
    ladder = climbed(capsys, write_model(tmp_path), "onnxruntime")
    assert names(ladder) == [TRACE, PASSES, FUSED_AND_STORED]
    check(ladder, TRACE, layer, "norm1")


@pytest.mark.slow
def test_the_target_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lowers another program than it was given."""
    layer = drawn_layer("target")
    lower_right = LLVMTarget.lower

    def lower_faulty(
        self: LLVMTarget, program: Program, options: TargetOptions, folder: Path
    ) -> Lowered:
        planted_faults.FAULTS["swap-keys-and-values"](program, layer)
        return lower_right(self, program, options, folder)

    monkeypatch.setattr(LLVMTarget, "lower", lower_faulty)
    ladder = climbed(capsys, write_model(tmp_path), "tvm_llvm")
    assert names(ladder) == [TRACE, PASSES, FUSED_AND_STORED, "lowering", TARGET]
    check(ladder, TARGET, layer, "k_rot")


@pytest.mark.slow
def test_the_lowering_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program is imported than was given, and the target's own kernels compute that."""
    layer = drawn_layer("lowering")

    def import_faulty(
        program: Program, *, fused: Mapping[str, FusedConverter] | None = None
    ) -> object:
        planted_faults.FAULTS["see-one-ahead"](program, layer)
        tidy(program.graph)
        return relax_from_program(program, fused=fused)

    monkeypatch.setattr(lower, "relax_from_program", import_faulty)
    monkeypatch.setattr(lowered, "relax_from_program", import_faulty)
    ladder = climbed(capsys, write_model(tmp_path), "tvm_llvm")
    assert names(ladder) == [TRACE, PASSES, FUSED_AND_STORED, "lowering", TARGET]
    # Its taps cannot be replaced: all errors are accumulated.
    check(ladder, "lowering", layer, "attn", how="outside the limit")


@pytest.mark.slow
def test_a_target_that_reads_no_programs_has_no_lowering(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **_options: object) -> None:
        raise TargetError("TVM's ONNX importer has no operator 'Odd'")

    monkeypatch.setattr(lowered, "LoweredRunner", refuse)
    ladder = climbed(capsys, write_model(tmp_path), "tvm_llvm")
    assert names(ladder) == [TRACE, PASSES, FUSED_AND_STORED, TARGET]


def test_a_ladder_ends_at_the_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ladder = climbed(capsys, write_model(tmp_path), "onnxruntime@fold-mask")
    assert names(ladder) == [TRACE, "passes: keep-qkv-bias to fold-mask"]
    assert ladder["said"].startswith(f"{ladder['largest']} changes the logits most")
    assert "no tap is wrong by itself" in ladder["said"]


@pytest.mark.parametrize("target", ["torch@bf16"])
def test_no_ladder_leads_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    path = write_model(tmp_path)
    with in_this_process():
        code = main(["compare", str(path), "--targets", f"torch,{target}", "--ladder"])
    assert code == 2
    assert f"no ladder leads to {target}: it reads the checkpoint by itself" in (
        capsys.readouterr().err
    )
