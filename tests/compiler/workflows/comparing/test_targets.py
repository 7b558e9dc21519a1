"""What `--targets` names: how it is parsed, refused and opened."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import BuiltBundles, in_this_process

from compiler import registry
from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import CompilerError, ConfigError, MachineLacks, RunError
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import Probe
from compiler.workflows.comparing.targets import (
    TargetChoice,
    TargetOpener,
    missing_reference,
    parse_choice,
    refusal,
    refuse_onnx,
)
from compiler.workflows.frontend import locate
from targets.llvm.target import LLVMTarget

TOKENS = (3, 1, 4, 1, 5)
LLVM, INTERPRETER = TargetChoice("tvm_llvm"), TargetChoice("onnxruntime")


def opener_of(config: BuildConfig) -> TargetOpener:
    return TargetOpener(config, locate(config, progress=Progress()), Progress())


@pytest.fixture
def opener(built_bundles: BuiltBundles) -> TargetOpener:
    return opener_of(built_bundles.config())


class Notes(Progress):
    """Remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def logits_of(runner: Runner) -> np.ndarray:
    try:
        return runner.extend(TOKENS)
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("torch", TargetChoice("torch"), "torch"),
        ("llvm", LLVM, "tvm_llvm"),
        ("tvm_llvm", LLVM, "tvm_llvm"),
        ("torch@bf16", TargetChoice("torch", "bf16"), "torch@bf16"),
        ("onnxruntime@trace", TargetChoice("onnxruntime", "trace"), "onnxruntime@trace"),
        ("onnxruntime@./a.py:B", TargetChoice("onnxruntime", "./a.py:B"), "onnxruntime@./a.py:B"),
        ("vacc", TargetChoice("tvm_vacc"), "tvm_vacc"),
        ("a/out.npz", TargetChoice("", file=Path("a/out.npz")), "out.npz"),
        ("torch@x.npz", TargetChoice("", file=Path("torch@x.npz")), "torch@x.npz"),
    ],
)
def test_what_is_named(text: str, expected: TargetChoice, shown: str) -> None:
    found = parse_choice(text)
    assert found == expected
    assert str(found) == shown


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("lvm", "no target is named 'lvm'", "did you mean 'llvm'? Possible: "),
        ("nosuch", "no target is named 'nosuch'", "possible: "),
        ("", "no target is named ''", "possible: "),
        ("@bf16", "no target is named ''", "possible: "),
        ("Torch", "no target is named 'Torch'", "did you mean 'torch'?"),
        ("out.NPZ", "no target is named 'out.NPZ'", "possible: "),
        ("torch@", "'torch@' ends with an @", "write torch, or torch@variant"),
    ],
)
def test_what_is_not_named(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_choice(text)
    assert (caught.value.message, caught.value.where) == (message, "--targets")
    assert str(caught.value.hint).startswith(hint)


def test_what_can_run_here_is_not_refused() -> None:
    for name in ("torch", "torch@bf16", "torch@fp16", "onnxruntime", "onnxruntime@x", "llvm"):
        assert refusal(parse_choice(name)) is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "torch@bf61",
            "target 'torch' has no variant 'bf61'",
            "did you mean 'torch@bf16'? possible: torch@bf16, torch@fp16",
        ),
        (
            "torch@bf16@x",
            "target 'torch' has no variant 'bf16@x'",
            "did you mean 'torch@bf16'? possible: torch@bf16, torch@fp16",
        ),
        ("llvm@bf16", "target 'tvm_llvm' has no variant 'bf16'", "write tvm_llvm"),
    ],
)
def test_variants_that_are_not_there(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refusal(parse_choice(text))
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.where == "--targets"


@pytest.mark.usefixtures("no_plugins")
def test_a_target_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tvm_vacc' is not installed"):
        refusal(parse_choice("vacc"))


def test_what_is_lacking_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Probe(can_build=False, can_run=False, missing=("no card", "no driver"))
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: lacking)
    assert refusal(LLVM) == "no card; no driver"
    error = missing_reference(LLVM, "no card")
    assert isinstance(error, MachineLacks)
    assert error.message == "target 'tvm_llvm' cannot run here: no card"
    assert error.hint == "install what is missing, or name another reference first"


def test_a_plugin_without_its_package_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: Mapping[str, str] = {**registry.TARGETS, "card": "no_such_package.target:Card"}
    monkeypatch.setattr(registry, "TARGETS", targets)
    found = refusal(parse_choice("card"))
    assert found is not None
    assert "needs the module 'no_such_package', which is not installed" in found


def test_passes_until_a_name(opener: TargetOpener) -> None:
    passes = opener.passes_until("")
    names = [planned.rewrite.name for planned in passes]
    assert passes == opener.passes()
    assert opener.passes_until("trace") == ()
    until = opener.passes_until("fold-mask")
    assert [planned.rewrite.name for planned in until] == names[: names.index("fold-mask") + 1]
    assert 1 < len(until) < len(passes)
    # The target's own come last.
    assert names[-1] == "store-weights"
    assert opener.passes_until("store-weights") == passes


def test_the_last_pass_of_a_name_counts(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    yaml = built_bundles.variant(tmp_path, added=("fold-constants",))
    opener = opener_of(load_config(yaml))
    names = [planned.rewrite.name for planned in opener.passes()]
    assert names.count("fold-constants") == 2
    found = [planned.rewrite.name for planned in opener.passes_until("fold-constants")]
    assert found.count("fold-constants") == 2
    assert found == names[: len(found)]


@pytest.mark.parametrize(
    ("variant", "hint"),
    [
        ("fold-msk", "did you mean 'fold-mask'? write trace, or one of: keep-qkv-bias, "),
        ("FOLD_MASK", "did you mean 'fold-mask'? write trace"),
        ("annotate-int8-qdq", "write trace, or one of: keep-qkv-bias, "),
    ],
)
def test_a_pass_that_the_build_lacks(opener: TargetOpener, variant: str, hint: str) -> None:
    choice = TargetChoice("onnxruntime", variant)
    for attempt in (opener.check, opener.open):
        with pytest.raises(RunError) as caught:
            attempt(choice)
        assert caught.value.message == f"the build of tiny has no pass '{variant}'"
        assert caught.value.where == "--targets"
        assert str(caught.value.hint).startswith(hint)


def test_what_a_build_refuses_is_refused_before(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    yaml = built_bundles.variant(tmp_path, features=("avx3",))
    opener = opener_of(load_config(yaml))
    for choice in (TargetChoice("torch"), INTERPRETER):
        opener.check(choice)
    with pytest.raises(CompilerError, match="avx3"):
        opener.check(LLVM)


def test_each_target_takes_its_own_options(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    overrides = ["backend.type=vacc", "backend.dtype=fp16", "frontend.shape.input_ids=[[32],[48]]"]
    yaml = built_bundles.variant(tmp_path)
    config = load_config(yaml, overrides=[*overrides, "backend.compile={strict: true}"])
    for choice in (LLVM, TargetChoice("tvm_vacc")):
        opener_of(config).check(choice)
    config = load_config(yaml, overrides=[*overrides, "backend.compile={turbo: true}"])
    opener_of(config).check(LLVM)
    with pytest.raises(CompilerError, match="'tvm_vacc' has no compile option 'turbo'"):
        opener_of(config).check(TargetChoice("tvm_vacc"))
    config = load_config(yaml, overrides=[*overrides, "backend.compile={threads: no}"])
    with pytest.raises(CompilerError, match="threads is False"):
        opener_of(config).check(LLVM)


def test_options_of_the_yamls_target_are_left_out_for_another(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    overrides = ["backend.compile={profile: mine.yaml, strict: true}", "backend.dtype=fp16"]
    yaml = built_bundles.variant(tmp_path)
    opener = opener_of(load_config(yaml, overrides=overrides, target="vacc"))
    heard = Notes()
    opener.progress = heard
    opener.check(LLVM)
    with in_this_process():
        logits_of(opener.open(LLVM))
    assert heard.notes[1] == (
        "tvm_llvm is built without backend.compile (profile, strict): those are options of tvm_vacc"
    )
    with pytest.raises(CompilerError, match=r"mine\.yaml"):
        opener.check(TargetChoice("tvm_vacc"))


def test_a_target_of_one_prompt_is_built_for_one(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    yaml = built_bundles.variant(tmp_path, batch=2)
    opener = opener_of(load_config(yaml, overrides=["backend.dtype=fp16"]))
    opener.check(TargetChoice("tvm_vacc"))
    alone = opener_of(load_config(yaml, overrides=["backend.dtype=fp16"], target="vacc"))
    with pytest.raises(CompilerError, match="serves one prompt at a time, not 2"):
        alone.check(TargetChoice("tvm_vacc"))


def test_programs_open_at_a_pass(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 weights are there behind the pass that makes them, and not before it."""
    yaml = built_bundles.variant(tmp_path, added=("annotate-int8-qdq",))
    opener = opener_of(load_config(yaml))
    with in_this_process():
        traced, folded, last_float, quantized, whole = (
            logits_of(opener.open(TargetChoice("onnxruntime", variant)))
            for variant in ("trace", "fold-mask", "insert-strided-slice", "annotate-int8-qdq", "")
        )
        monkeypatch.setattr("compiler.workflows.comparing.targets.enter", pytest.fail)
        again = logits_of(opener.open(TargetChoice("onnxruntime", "trace")))
    assert traced.shape == (128,)
    assert again.tobytes() == traced.tobytes()
    np.testing.assert_allclose(folded, traced, atol=1e-5)
    np.testing.assert_allclose(last_float, traced, atol=1e-5)
    assert np.abs(quantized - traced).max() > 1e-3
    np.testing.assert_allclose(whole, quantized, atol=1e-5)


def test_a_checkpoint_is_opened_in_the_dtype_of_the_variant(opener: TargetOpener) -> None:
    plain = logits_of(opener.open(TargetChoice("torch")))
    half = logits_of(opener.open(TargetChoice("torch", "bf16")))
    assert 1e-4 < np.abs(plain - half).max() < 0.2


def test_an_onnx_file_is_no_checkpoint(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    refuse_onnx(built_bundles.config(), TargetChoice("torch"))
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: m.onnx, type: onnx, shape: {input_ids: [[16], [32]]}}\n"
        "backend: {type: llvm}\n"
    )
    config = load_config(path)
    refuse_onnx(config, INTERPRETER)
    refuse_onnx(config, LLVM)
    with pytest.raises(RunError, match="'torch' reads a Hugging Face checkpoint") as caught:
        refuse_onnx(config, TargetChoice("torch"))
    assert str(caught.value.where).startswith(f"{path}:1")
    assert "onnxruntime@trace" in str(caught.value.hint)


@pytest.mark.slow
def test_a_bundle_of_another_backend_is_built_beside_the_user_s(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(LLVMTarget):
        name = "other"  # pyright: ignore[reportAssignmentType]

    monkeypatch.setattr("targets.llvm.target.OtherTarget", Other, raising=False)
    targets = {**registry.TARGETS, "other": "targets.llvm.target:OtherTarget"}
    monkeypatch.setattr(registry, "TARGETS", targets)
    yaml = built_bundles.variant(tmp_path)
    opener = opener_of(load_config(yaml, overrides=["backend.type=other"]))
    with in_this_process():
        opener.check(LLVM)
        assert not (tmp_path / "workspace").exists()
        ours = logits_of(opener.open(LLVM))
        again = logits_of(opener.open(LLVM))
    workspace = tmp_path / "workspace"
    assert (workspace / "compare" / "tvm_llvm" / "tiny" / "manifest.json").is_file()
    assert not (workspace / "tiny").exists()
    assert again.tobytes() == ours.tobytes()
    reference = replace(opener, config=built_bundles.config())
    np.testing.assert_allclose(ours, logits_of(reference.open(TargetChoice("torch"))), atol=1e-4)


def test_programs_need_no_target_that_builds_here(
    opener: TargetOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program is run by onnxruntime: what the YAML's target lacks is of no interest."""
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: Probe(False, False, ("there is no TVM",)))
    opener.check(INTERPRETER)
    assert opener.passes()[-1].rewrite.name == "store-weights"
    with pytest.raises(CompilerError, match="there is no TVM"):
        opener.check(LLVM)
