"""Eleven faults, each in a layer drawn by seed: one command names the layer and the tap."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from built_bundles import TinyModel, in_this_process, write_tiny, write_yaml
from compiler_process import ROOT

from compiler.cli import main

PLAIN = TinyModel(layers=6, window=16, context=32)
SLIDING = TinyModel(layers=6, window=16, context=32, variant="sliding")
SQUARE = TinyModel(layers=6, window=16, context=32, hidden=128, vocabulary=128)
QUANTIZED = TinyModel(layers=6, window=16, context=32, added=("annotate-int8-qdq",))


@dataclass(frozen=True)
class Case:
    """A fault, the model that it is planted in, and where it must be found.

    Attributes:
        fault: Of `planted_faults`.
        point: The tap that is wrong first.
        model: The model.
        least: The first layer that can have it; None: it lies outside the layers.
        status: What is wrong with the tap.
        limits: Of the YAML's `compare`.
    """

    fault: str
    point: str
    model: TinyModel = PLAIN
    least: int | None = 0
    status: str = "fail"
    limits: tuple[tuple[str, float], ...] = ()


# What int8 weights may cost.
_ROUNDED = (("max_abs", 4.0), ("max_rel", 0.2), ("min_cosine", 0.9), ("max_local", 0.05))
CASES = (
    Case("drop-bias", "q"),
    Case("swap-keys-and-values", "k_rot"),
    Case("change-rope-base", "q_rot"),
    Case("change-epsilon", "norm1"),
    Case("double-one-channel", "up", QUANTIZED, limits=_ROUNDED),
    Case("widen-window", "attn", SLIDING, least=1),
    Case("see-one-ahead", "attn"),
    Case("write-one-late", "keys"),
    Case("read-padding", "logits", least=None),
    Case("overflow-half", "act", status="infinite"),
    Case("transpose-head", "logits", SQUARE, least=None),
)
NAMES = [case.fault for case in CASES]
# More than a window, the second of which is padded.
PROMPT, TOKENS = " ".join(f"t{7 * index % 50}" for index in range(21)), "2"


def planted(folder: Path, case: Case, layer: int) -> Path:
    """The YAML of a model with the fault; nothing is verified when it is built."""
    checkpoint = write_tiny(folder / "checkpoint", case.model)
    path = write_yaml(folder / "model.yaml", replace(case.model, added=()), checkpoint)
    tree = yaml.safe_load(path.read_text())
    fault = {
        "pass": f"{ROOT / 'tests' / 'planted_faults.py'}:PlantFault",
        "options": {"fault": case.fault, "layer": layer},
        "before": "store-weights",
    }
    tree["passes"] = {"add": [*case.model.added, fault]}
    tree["verify"] = "off"
    tree["compare"] = dict(case.limits)
    path.write_text(json.dumps(tree))
    (folder / "prompts.txt").write_text(PROMPT)
    return path


def drawn_layer(case: Case) -> int:
    """Another one for each fault, the same each time."""
    return random.Random(case.fault).randrange(case.least or 0, case.model.layers)


def compared(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> dict:
    prompts = path.parent / "prompts.txt"
    with in_this_process():
        code = main(
            [
                "compare",
                str(path),
                "--prompts",
                str(prompts),
                "--tokens",
                TOKENS,
                "--json",
                *options,
            ]
        )
    report = json.loads(capsys.readouterr().out)
    assert (code, report["passed"]) == (1, False)
    return report


def found(capsys: pytest.CaptureFixture[str], path: Path, target: str) -> dict:
    report = compared(capsys, path, "--targets", f"torch,{target}", "--level", "tap")
    return report["comparisons"][0]


def check(comparison: dict, case: Case, layer: int) -> None:
    fault = comparison["findings"][0]
    expected = None if case.least is None else layer
    assert (fault["kind"], fault["layer"], fault["point"]) == ("fault", expected, case.point)
    taps = {(tap["layer"], tap["point"]): tap for tap in comparison["taps"]}
    assert taps[expected, case.point]["status"] == case.status


# Faults that need no reference -> the check that catches them, the token, and whether a layer is
# named: a row that looks ahead sees a slot that nobody wrote; a key stands in the padding's first
# slot; padding changes the logits; no value behind the overflow is finite.
SEEN_ALONE = {
    "see-one-ahead": ("causality", 11, True),
    "write-one-late": ("padding", 8, True),
    "read-padding": ("padding", 7, False),
    "overflow-half": ("window-split", 0, True),
}


def check_alone(capsys: pytest.CaptureFixture[str], folder: Path, fault: str, target: str) -> None:
    """Without a reference, and without a right model to run it on."""
    case = CASES[NAMES.index(fault)]
    layer = drawn_layer(case)
    path = planted(folder, case, layer)
    report = compared(capsys, path, "--targets", target, "--semantic")
    assert report["comparisons"] == []
    checks = {check["name"]: check for check in report["semantic"][target]}
    name, token, is_in_layer = SEEN_ALONE[fault]
    found = checks[name]
    expected = ("fail", token, layer if is_in_layer else None)
    assert (found["status"], found["token"], found["layer"]) == expected, found["said"]


@pytest.mark.parametrize("fault", SEEN_ALONE)
def test_a_program_is_caught_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    check_alone(capsys, tmp_path, fault, "onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["see-one-ahead", "overflow-half"])
def test_a_bundle_is_caught_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    check_alone(capsys, tmp_path, fault, "tvm_llvm")


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_program_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    layer = drawn_layer(case)
    check(found(capsys, planted(tmp_path, case, layer), "onnxruntime"), case, layer)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_bundle_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    layer = drawn_layer(case)
    check(found(capsys, planted(tmp_path, case, layer), "tvm_llvm"), case, layer)
