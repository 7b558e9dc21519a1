"""Targets held against transformers: equal models pass, a planted fault fails."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from built_bundles import BuiltBundles, in_this_process
from checkpoint_factory import change_tensors

from compiler.config import BuildConfig, load_config
from compiler.contracts.bundle import Bundle
from compiler.contracts.comparison import Comparison
from compiler.contracts.errors import ConfigError, MachineLacks, RunError
from compiler.contracts.program import Program
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Probe, Runner
from compiler.contracts.weights import CheckpointRef
from compiler.workflows.compare import compare
from targets.llvm.target import LLVMTarget
from targets.torch.target import TorchTarget

pytestmark = pytest.mark.slow

BIAS = "model.layers.1.self_attn.v_proj.bias"


def compared(
    config: BuildConfig, *, targets: Sequence[str] = ("torch", "llvm"), tokens: int = 6
) -> Comparison:
    with in_this_process():
        (comparison,) = compare(config, targets=targets, prompts=("t1 t2 t3",), tokens=tokens)
    return comparison


def test_equal_models_pass(built_bundles: BuiltBundles) -> None:
    built_bundles.bundle()
    comparison = compared(built_bundles.config())
    assert comparison.passed
    assert (comparison.reference, comparison.candidate) == ("torch", "tvm_llvm")
    # Random prompts of 1 token, part of a window, a window and more than one; then the text.
    assert len(comparison.tensors) == 5 * 6
    assert comparison.tensors[0].name == "prompt0/step0/logits"
    assert {tensor.status for tensor in comparison.tensors} == {"pass"}
    assert max(tensor.max_abs for tensor in comparison.tensors) < 1e-4
    assert comparison.first_divergence is None


def test_a_dropped_bias_fails(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is built from a checkpoint without the bias that transformers reads."""
    whole = built_bundles.checkpoint()
    faulty = tmp_path / "checkpoint"
    faulty.mkdir()
    for file in whole.iterdir():
        (faulty / file.name).write_bytes(file.read_bytes())
    change_tensors(faulty, {BIAS: np.zeros(32, np.float32)})
    opened: list[Path] = []
    open_torch = TorchTarget.open

    def open_whole(
        self: TorchTarget,
        model: CheckpointRef | Program | Bundle,
        *,
        threads: int | None = None,
    ) -> Runner:
        assert isinstance(model, CheckpointRef)
        opened.append(model.path)
        found = CheckpointRef(whole, model.config, model.tensors, model.digest)
        return open_torch(self, found, threads=threads)

    monkeypatch.setattr(TorchTarget, "open", open_whole)
    yaml = built_bundles.variant(tmp_path)
    comparison = compared(load_config(yaml, overrides=[f"frontend.checkpoint={faulty}"]))
    assert opened == [faulty]
    assert not comparison.passed
    failed = [tensor for tensor in comparison.tensors if tensor.status == "fail"]
    assert len(failed) == len(comparison.tensors)
    assert min(tensor.max_abs for tensor in failed) > 1e-2


def test_a_prompt_that_is_not_compared_is_said(built_bundles: BuiltBundles) -> None:
    built_bundles.bundle()
    said: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    prompts = ("t1 " * 47, "t1 t2 t3")
    with in_this_process():
        (comparison,) = compare(
            built_bundles.config(),
            targets=("torch", "llvm"),
            prompts=prompts,
            tokens=2,
            progress=Notes(),
        )
    assert len(comparison.tensors) == 5 * 2
    assert [text for text in said if text.startswith("left out")] == [
        f"left out: {prompts[0][:40]!r} has 47 tokens, 46 fit"
    ]


def test_nothing_compared_is_a_failure(built_bundles: BuiltBundles) -> None:
    with pytest.raises(RunError, match="nothing to compare: 48 tokens leave no room") as caught:
        compared(built_bundles.config(), tokens=48)
    assert caught.value.exit_code == 2
    empty = Comparison("torch", "tvm_llvm", "end-to-end", (), 1.0, 1.0, None)
    assert not empty.passed


@pytest.mark.parametrize("targets", [(), ("llvm",), ("llvm", "tvm_llvm")])
def test_fewer_than_two_targets(built_bundles: BuiltBundles, targets: tuple[str, ...]) -> None:
    with pytest.raises(RunError, match="cannot compare") as caught:
        compared(built_bundles.config(), targets=targets)
    assert caught.value.hint == "name two different targets: --targets torch,llvm"


def test_an_unknown_target(built_bundles: BuiltBundles) -> None:
    with pytest.raises(ConfigError, match="'lvm'") as caught:
        compared(built_bundles.config(), targets=("torch", "lvm"))
    assert "llvm" in str(caught.value.hint)


def test_no_tokens(built_bundles: BuiltBundles) -> None:
    with pytest.raises(RunError, match="tokens is 0, expected at least 1"):
        compared(built_bundles.config(), tokens=0)


def test_a_target_that_cannot_run_here(
    built_bundles: BuiltBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Probe(can_build=False, can_run=False, missing=("there is no such card",))
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: lacking)
    with pytest.raises(MachineLacks, match="'tvm_llvm' cannot run here: there is no such card"):
        compared(built_bundles.config())


def test_another_bundle_of_the_user_is_left_alone(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    yaml = built_bundles.variant(tmp_path)
    theirs = built_bundles.copy(tmp_path / "workspace" / "tiny")
    manifest = (theirs / "manifest.json").read_bytes()
    config = load_config(yaml, overrides=["frontend.shape.input_ids=[[16],[32]]"])
    assert compared(config).passed
    assert (theirs / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "workspace" / "compare" / "tiny" / "manifest.json").is_file()


def test_a_reference_that_reads_checkpoints_refuses_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: m.onnx, type: onnx, shape: {input_ids: [[16], [32]]}}\n"
        "backend: {type: llvm}\n"
    )
    with pytest.raises(RunError, match="'torch' reads a Hugging Face checkpoint") as caught:
        compare(load_config(path), targets=("torch", "llvm"))
    assert str(caught.value.where).startswith(f"{path}:1")
