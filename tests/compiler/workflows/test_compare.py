"""Targets held against a reference: equal models pass, what is wrong or was not compared fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import BuiltBundles, TinyModel, in_this_process, write_yaml
from checkpoint_factory import change_tensors

from compiler.cli import main
from compiler.config import BuildConfig, load_config
from compiler.contracts.bundle import Bundle
from compiler.contracts.comparison import LEVELS, Comparison, Level, Report
from compiler.contracts.errors import ConfigError, MachineLacks, RunError
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Tap, taps_of
from compiler.contracts.target_base import Probe, ProgramModel
from compiler.contracts.weights import CheckpointRef
from compiler.saved_outputs import SavedOutputs, SavedPrompt, read_outputs, write_outputs
from compiler.stages.observe import LAYER_POINTS
from compiler.tap_store import TapFolder
from compiler.workflows.compare import compare
from compiler.workflows.comparing.inputs import InputOptions
from compiler.workflows.comparing.request import CompareRequest
from compiler.workflows.comparing.targets import TargetChoice, parse_choice
from targets.llvm.target import LLVMTarget
from targets.onnxruntime.target import OnnxRuntimeTarget
from targets.torch.target import TorchTarget

BIAS = "model.layers.1.self_attn.v_proj.bias"
LACKING = Probe(can_build=True, can_run=False, missing=("there is no such card",))
# Random prompts of 1 token, part of a window, a window and more than one; then the text.
PROMPTS, TOKENS = 5, 3
READ = InputOptions(prompts=("t1 t2 t3",), tokens=TOKENS)
TEXT = " ".join(f"t{index * 7 % 120}" for index in range(60))
# By level, in a model of two layers: what is seen outside of them, and in each.
TAPS = {"end-to-end": 0, "layer": 3 + 2 * 3, "tap": 3 + 2 * 17}


def choices(text: str) -> tuple[TargetChoice, ...]:
    return tuple(parse_choice(name) for name in text.split(","))


def compared(config: BuildConfig, targets: str, **asked: object) -> Report:
    request = CompareRequest(choices(targets), **{"inputs": READ, **asked})  # type: ignore[arg-type]
    with in_this_process():
        return compare(config, request)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    """Exit code, and what `--json` prints: one object, without NaN and Infinity."""
    with in_this_process():
        code = main(["compare", *map(str, arguments), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


@pytest.fixture
def config(built_bundles: BuiltBundles) -> BuildConfig:
    return built_bundles.config()


@pytest.fixture
def forbid_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No target may be opened: what is wrong is to be found before."""
    for target in (TorchTarget, OnnxRuntimeTarget, LLVMTarget):
        monkeypatch.setattr(target, "open", lambda *_, **__: pytest.fail("a target was opened"))


@pytest.fixture(scope="module")
def saved(
    built_bundles: BuiltBundles, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Level], Path]:
    """Outputs of a target at a level, saved once."""
    folder = tmp_path_factory.mktemp("saved")

    def save(target: str, level: Level) -> Path:
        path = folder / f"{target}-{level}.npz"
        if not path.is_file():
            report = compared(built_bundles.config(), target, level=level, save=path)
            assert report.comparisons == ()
        return path

    return save


def reread(path: Path) -> SavedOutputs:
    return read_outputs(path, vocabulary=128, context=48)


def rewritten(
    path: Path, source: Path, *, taps: TapFolder | None = None, **changed: object
) -> Path:
    """A copy of saved outputs with other fields."""
    write_outputs(path, replace(reread(source), **changed), taps)
    return path


def only(report: Report) -> Comparison:
    (comparison,) = report.comparisons
    return comparison


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_agrees_at_every_level(config: BuildConfig, level: Level) -> None:
    report = compared(config, "torch,onnxruntime,onnxruntime@trace", level=level)
    names = [(one.reference, one.candidate) for one in report.comparisons]
    assert names == [("torch", "onnxruntime"), ("torch", "onnxruntime@trace")]
    for one in report.comparisons:
        assert one.passed
        assert one.findings == ()
        assert one.level == level
        assert len(one.steps) == PROMPTS * TOKENS
        assert one.steps[0].name == "prompt0/step0/logits"
        assert max(step.measures.max_abs for step in one.steps) < 1e-4
        assert (one.top1_agreement, one.first_divergence, one.perplexity) == (1.0, None, None)
        assert len(one.taps) == TAPS[level]
        assert all(tap.local is not None and tap.status == "pass" for tap in one.taps)
        assert not any(tap.is_recomputed for tap in one.taps)
    assert (report.ladder, report.semantic) == (None, {})
    assert report.environment["model"] == "tiny"
    assert len(report.environment["inputs"]) == 16


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_bundle_agrees_at_every_level(
    built_bundles: BuiltBundles, config: BuildConfig, level: Level
) -> None:
    built_bundles.bundle()
    one = only(compared(config, "torch,llvm", level=level))
    assert one.passed
    assert (one.reference, one.candidate) == ("torch", "tvm_llvm")
    assert len(one.steps) == PROMPTS * TOKENS
    assert {step.status for step in one.steps} == {"pass"}
    assert max(step.measures.max_abs for step in one.steps) < 1e-4
    assert one.first_divergence is None
    # Its kernels swallow nothing.
    assert len(one.taps) == TAPS[level]
    assert not any(tap.is_recomputed for tap in one.taps)


@pytest.mark.slow
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
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        assert isinstance(model, CheckpointRef)
        opened.append(model.path)
        found = CheckpointRef(whole, model.config, model.tensors, model.digest)
        return open_torch(self, found, threads=threads, variant=variant)

    monkeypatch.setattr(TorchTarget, "open", open_whole)
    yaml = built_bundles.variant(tmp_path)
    faulty_config = load_config(yaml, overrides=[f"frontend.checkpoint={faulty}"])
    report = compared(faulty_config, "torch,llvm,onnxruntime", level="tap")
    assert opened == [faulty]
    for one in report.comparisons:
        assert not one.passed
        assert {step.status for step in one.steps} == {"fail"}
        assert min(step.measures.max_abs for step in one.steps) > 1e-2
        fault = one.findings[0]
        assert (fault.kind, fault.layer, fault.point) == ("fault", 1, "v")


def test_a_prompt_that_is_not_compared_is_said(config: BuildConfig) -> None:
    said: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    prompts = ("t1 " * 47, "t1 t2 t3")
    inputs = InputOptions(prompts=prompts, tokens=2)
    request = CompareRequest(choices("torch,onnxruntime"), inputs)
    with in_this_process():
        one = only(compare(config, request, progress=Notes()))
    assert len(one.steps) == 5 * 2
    assert [text for text in said if text.startswith("left out")] == [
        f"left out: {prompts[0][:40]!r} has 47 tokens, 46 fit"
    ]


@pytest.mark.usefixtures("forbid_runs")
def test_nothing_compared_is_a_failure(config: BuildConfig) -> None:
    inputs = InputOptions(tokens=48)
    with pytest.raises(RunError, match="nothing to compare: 48 tokens leave 0") as caught:
        compared(config, "torch,onnxruntime", inputs=inputs)
    assert caught.value.exit_code == 2
    assert not Comparison("torch", "tvm_llvm", "end-to-end").passed


@pytest.mark.usefixtures("forbid_runs")
@pytest.mark.parametrize("targets", ["llvm", "torch", "llvm,tvm_llvm", "torch,llvm,torch"])
def test_fewer_than_two_targets(config: BuildConfig, targets: str) -> None:
    with pytest.raises(ConfigError, match="does not name two different targets") as caught:
        compared(config, targets)
    assert caught.value.where == "--targets"
    assert str(caught.value.hint).endswith("--targets torch,llvm")


@pytest.mark.usefixtures("forbid_runs")
@pytest.mark.parametrize(
    ("targets", "asked", "message"),
    [
        ("torch,a.npz", {"is_ladder": True}, "--ladder leads from a target"),
        ("a.npz,torch", {"is_ladder": True}, "--ladder leads from a target"),
        ("torch", {"is_ladder": True, "against": Path("a.npz")}, "--ladder leads from a target"),
        ("torch", {"is_ladder": True, "is_semantic": True}, "--ladder leads from a target"),
        ("torch", {"is_ladder": True, "save": Path("o.npz")}, "--ladder leads from a target"),
        ("torch", {"text": TEXT, "against": Path("a.npz")}, "--text takes the perplexity of two"),
        ("torch", {"text": TEXT, "save": Path("o.npz")}, "--text takes the perplexity of two"),
        ("torch,a.npz", {"text": TEXT}, "--text takes the perplexity of two"),
        ("torch", {"save": Path("o.npz"), "against": Path("a.npz")}, "--save keeps what the ref"),
        ("a.npz,torch", {"save": Path("o.npz")}, "--save keeps what the reference says"),
        ("torch", {"is_semantic": True, "level": "tap"}, "--level tap compares two targets"),
        ("a.npz", {"against": Path("a.npz")}, "'a.npz' does not name two different targets"),
        ("a.npz,a.npz", {}, "'a.npz,a.npz' does not name two different targets"),
    ],
)
def test_what_contradicts_itself(
    config: BuildConfig, targets: str, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(config, targets, **asked)
    assert caught.value.message.startswith(message)
    assert (caught.value.where, caught.value.code) == ("--targets", "usage")


@pytest.mark.usefixtures("forbid_runs")
@pytest.mark.parametrize(
    ("targets", "asked", "message"),
    [
        ("torch,onnxruntime@fold-msk", {}, "has no pass 'fold-msk'"),
        ("torch,torch@bf61", {}, "has no variant 'bf61'"),
        ("torch,none.npz", {}, "cannot be read: No such file or directory"),
        ("torch", {"against": Path("none.npz")}, "cannot be read: No such file or directory"),
        ("torch,onnxruntime", {"inputs_file": Path("none.npz")}, "cannot be read: No such file"),
        ("torch,onnxruntime", {"text": "t1"}, "the perplexity of 1 tokens means nothing"),
        ("torch,vacc", {}, "the device takes weights of fp16 and int8, not fp32"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(
    config: BuildConfig, targets: str, asked: dict[str, object], message: str
) -> None:
    with pytest.raises((ConfigError, RunError)) as caught:
        compared(config, targets, **asked)
    assert message in caught.value.message


@pytest.mark.parametrize("is_only", [True, False])
def test_a_target_that_cannot_run_here(
    built_bundles: BuiltBundles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_only: bool,
) -> None:
    """It fails; where that is allowed the others decide, and it is named in the environment."""
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: LACKING)
    yaml = built_bundles.yaml()
    targets = "torch,llvm" if is_only else "torch,onnxruntime,llvm"
    options = (yaml, "--targets", targets, "--tokens", 2)
    code, found = run(capsys, *options)
    assert (code, found["passed"]) == (1, False)
    *others, missing = found["comparisons"]
    assert [one["passed"] for one in others] == ([] if is_only else [True])
    assert (missing["candidate"], missing["passed"], missing["steps"]) == ("tvm_llvm", False, [])
    (finding,) = missing["findings"]
    assert finding["kind"] == "missing"
    assert finding["said"].endswith("it cannot run here: there is no such card")
    assert "--allow-missing" in finding["hint"]
    code, found = run(capsys, *options, "--allow-missing", "--ladder")
    # Nothing compared is no success.
    assert (code, found["passed"]) == ((1, False) if is_only else (0, True))
    candidates = [one["candidate"] for one in found["comparisons"]]
    assert candidates == ([] if is_only else ["onnxruntime"])
    assert found["environment"]["tvm_llvm not compared"] == "there is no such card"
    assert (found["ladder"] is None) == is_only


def test_a_reference_that_cannot_run_here(
    built_bundles: BuiltBundles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(TorchTarget, "probe", lambda _: LACKING)
    message = "'torch' cannot run here: there is no such card"
    with pytest.raises(MachineLacks, match=message):
        compared(built_bundles.config(), "torch,onnxruntime", allows_missing=True)
    code, found = run(
        capsys, built_bundles.yaml(), "--targets", "torch,onnxruntime", "--allow-missing"
    )
    assert code == 3
    assert [error["code"] for error in found["errors"]] == ["machine-lacks"]


@pytest.mark.parametrize(
    "level", ["end-to-end", "layer", pytest.param("tap", marks=pytest.mark.slow)]
)
def test_saved_outputs_are_a_reference(
    config: BuildConfig, saved: Callable[[str, Level], Path], level: Level
) -> None:
    path = saved("torch", level)
    live = compared(config, "torch,onnxruntime", level=level)
    report = compared(config, "torch,onnxruntime", level=level, against=path)
    same, other = report.comparisons
    assert (same.passed, other.passed) == (True, True)
    assert (same.reference, same.candidate) == (path.name, "torch")
    assert max(step.measures.max_abs for step in same.steps) == 0
    assert replace(other, reference="torch") == only(live)
    assert len(same.taps) == TAPS[level]
    assert report.environment["inputs"] == live.environment["inputs"]
    first = compared(config, f"{path},onnxruntime", level=level)
    assert only(first) == other


@pytest.mark.parametrize("level", LEVELS)
def test_saved_outputs_are_a_candidate(
    config: BuildConfig, saved: Callable[[str, Level], Path], level: Level
) -> None:
    path = saved("onnxruntime", level)
    one = only(compared(config, f"torch,{path}", level=level))
    assert one.passed
    assert (one.reference, one.candidate, one.level) == ("torch", path.name, level)
    assert len(one.steps) == PROMPTS * TOKENS
    # Nothing can be run again: what a tap is off by itself is not known.
    assert len(one.taps) == TAPS[level]
    assert all(tap.local is None and tap.status == "pass" for tap in one.taps)
    files = only(compared(config, f"{saved('torch', level)},{path}", level=level))
    assert files.passed
    assert len(files.taps) == TAPS[level]


def test_what_is_saved(config: BuildConfig, saved: Callable[[str, Level], Path]) -> None:
    found = reread(saved("torch", "layer"))
    assert (found.target, found.window) == ("torch", 32)
    assert len(found.model) == 64
    assert [len(one.tokens) for one in found.prompts] == [1, 12, 32, 41, 3]
    assert {len(one.fed) for one in found.prompts} == {TOKENS - 1}
    calls = {name.split("/model")[0].rpartition("/")[0] for name in found.tap_names}
    # Prompt 3 is longer than a window: it is read in two.
    assert "prompt3/prefill1" in calls
    assert "prompt2/prefill1" not in calls
    expected = {str(tap) for tap in taps_of(2, LAYER_POINTS)}
    assert {name.split("/", 2)[2] for name in found.tap_names} == expected


def test_saved_outputs_are_the_same_each_time(
    config: BuildConfig, saved: Callable[[str, Level], Path], tmp_path: Path
) -> None:
    path = tmp_path / "again.npz"
    path.write_text("old")
    compared(config, "torch", level="layer", save=path)
    assert path.read_bytes() == saved("torch", "layer").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.npz"]


def test_wrong_saved_outputs_fail(
    config: BuildConfig, saved: Callable[[str, Level], Path], tmp_path: Path
) -> None:
    source = reread(saved("torch", "tap"))
    store = TapFolder(tmp_path / "taps")
    for name in source.tap_names:
        call, _, tap = name.partition("/model.")
        tap = Tap.parse(f"model.{tap}") if tap else Tap(None, name.split("/")[-1])
        call = call if tap.layer is not None else name.rpartition("/")[0]
        rows = source.get(call, tap)
        assert rows is not None
        is_wrong = (call, tap) == ("prompt3/prefill1", Tap(1, "k"))
        store.put(call, tap, rows * np.float32(1.5) if is_wrong else rows)
    prompts = list(source.prompts)
    assert prompts[0].logits is not None
    prompts[0] = replace(prompts[0], logits=prompts[0].logits * np.float32(1.1))
    path = rewritten(tmp_path / "wrong.npz", source.path, taps=store, prompts=tuple(prompts))
    one = only(compared(config, f"torch,{path}", level="tap"))
    assert not one.passed
    fault = one.findings[0]
    assert (fault.kind, fault.layer, fault.point) == ("fault", 1, "k")
    assert "prompt3/prefill1" in fault.said
    assert fault.hint.startswith("compare: {max_rel: 0.")
    wrong = [(tap.layer, tap.point) for tap in one.taps if tap.status != "pass"]
    assert wrong == [(1, "k")]
    assert {step.name for step in one.steps if step.status == "fail"} == {
        f"prompt0/step{step}/logits" for step in range(TOKENS)
    }
    assert "limit" in {finding.kind for finding in one.findings}


def test_taps_that_belong_to_nothing_are_no_success(
    config: BuildConfig, saved: Callable[[str, Level], Path], tmp_path: Path
) -> None:
    store = TapFolder(tmp_path / "taps")
    store.put("prompt9/prefill0", Tap(0, "q"), np.zeros((1, 64), np.float32))
    path = rewritten(tmp_path / "odd.npz", saved("torch", "layer"), taps=store)
    for targets in (f"torch,{path}", f"{path},torch"):
        one = only(compared(config, targets, level="tap"))
        assert not one.passed
        assert [finding.kind for finding in one.findings] == ["missing"]
        assert one.findings[0].said.startswith("no tap was compared")


@pytest.mark.usefixtures("forbid_runs")
@pytest.mark.parametrize("is_against", [True, False])
def test_saved_outputs_that_do_not_fit(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_against: bool
) -> None:
    path = tmp_path / "o.npz"
    logits = np.zeros((2, 128), np.float32)
    whole = SavedOutputs("torch", "", 32, (SavedPrompt((1, 2), (3,), logits),), path)
    store = TapFolder(tmp_path / "taps")
    store.put("prompt0/prefill0", Tap(0, "q"), np.zeros((2, 64), np.float32))

    def refusal(outputs: SavedOutputs, level: Level, taps: TapFolder | None) -> RunError:
        write_outputs(path, outputs, taps)
        side = {"against": path} if is_against else {}
        targets = "torch" if is_against else f"torch,{path}"
        with pytest.raises(RunError) as caught:
            compared(config, targets, level=level, **side)
        assert caught.value.where == str(path)
        assert caught.value.hint
        return caught.value

    alien = refusal(replace(whole, model="ab" * 32), "end-to-end", None)
    assert alien.message.startswith("its outputs are of another checkpoint (abababababababab, not ")
    windows = refusal(replace(whole, window=16), "tap", store)
    assert windows.message == "its taps are of windows of 16 tokens, the model's has 32"
    inputs = refusal(replace(whole, prompts=(SavedPrompt((1, 2)),)), "end-to-end", None)
    assert inputs.message == "holds inputs and no logits"
    bare = refusal(whole, "layer", None)
    assert bare.message == "holds logits and no taps"
    assert str(bare.hint).startswith("save it with --level layer")
    long = (SavedPrompt((1,) * 47, (3, 4), np.zeros((3, 128), np.float32)),)
    full = refusal(replace(whole, prompts=long), "end-to-end", None)
    assert full.message == "prompt0/fed holds 2 tokens, the context has room for 1"


def test_a_file_of_other_windows_does_for_logits(
    config: BuildConfig, saved: Callable[[str, Level], Path], tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "o.npz", saved("torch", "end-to-end"), window=16, model="")
    assert only(compared(config, "onnxruntime", against=path)).passed


@pytest.mark.usefixtures("forbid_runs")
def test_two_files_of_other_tokens(
    config: BuildConfig, saved: Callable[[str, Level], Path], tmp_path: Path
) -> None:
    source = saved("torch", "end-to-end")
    path = rewritten(tmp_path / "o.npz", source, prompts=reread(source).prompts[:-1])
    with pytest.raises(RunError, match="its tokens are not those of") as caught:
        compared(config, f"{source},{path}")
    assert caught.value.where == str(path)


def test_tokens_of_a_file_are_read(config: BuildConfig, tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    prompts = (SavedPrompt((5, 6, 7)), SavedPrompt((9,)))
    write_outputs(path, SavedOutputs("", "", 0, prompts, path), None)
    one = only(compared(config, "torch,onnxruntime", inputs_file=path))
    assert one.passed
    assert [strip.prompt_tokens for strip in one.strips] == [3, 1]
    assert len(one.steps) == 2 * TOKENS


@pytest.mark.usefixtures("forbid_runs")
def test_inputs_that_leave_no_room(config: BuildConfig, tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    prompts = (SavedPrompt((5,)), SavedPrompt((1,) * 46))
    write_outputs(path, SavedOutputs("", "", 0, prompts, path), None)
    with pytest.raises(RunError) as caught:
        compared(config, "torch,onnxruntime", inputs_file=path)
    assert caught.value.message == (
        "prompt1/tokens holds 46 tokens; to generate 3, the context has room for 45"
    )
    assert caught.value.where == str(path)


def test_the_perplexity_of_a_text(config: BuildConfig) -> None:
    report = compared(config, "torch,onnxruntime,torch@bf16", text=TEXT)
    exact, half = report.comparisons
    assert exact.passed
    assert exact.perplexity is not None
    assert half.perplexity is not None
    reference, candidate = exact.perplexity
    # Random weights know little: about as many choices as there are words.
    assert 64 < reference < 512
    assert candidate == pytest.approx(reference, rel=1e-5)
    assert half.perplexity[0] == reference
    assert 1e-7 < abs(half.perplexity[1] / reference - 1) < 0.05


@pytest.mark.slow
def test_half_precision_has_limits_of_its_own(
    built_bundles: BuiltBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = built_bundles.variant(tmp_path, dtype="bf16")
    prompts = tmp_path / "prompts.json"
    prompts.write_text('["t1 t2 t3", [{"role": "user", "content": "t5"}]]')
    options = ("--targets", "torch,torch@bf16", "--prompts", prompts)
    code, found = run(capsys, yaml, *options)
    assert (code, found["passed"]) == (0, True)
    (one,) = found["comparisons"]
    assert one["candidate"] == "torch@bf16"
    assert one["limits"]["max_rel"] == 0.08
    assert 1e-3 < max(step["measures"]["max_rel"] for step in one["steps"]) < 0.08
    code, found = run(capsys, yaml, *options, "--set", "backend.dtype=fp32")
    assert (code, found["passed"]) == (1, False)
    kinds = {finding["kind"] for finding in found["comparisons"][0]["findings"]}
    assert kinds == {"limit"}


def test_a_target_is_checked_by_itself(config: BuildConfig) -> None:
    report = compared(config, "onnxruntime", is_semantic=True)
    assert report.comparisons == ()
    (checks,) = report.semantic.values()
    assert list(report.semantic) == ["onnxruntime"]
    assert {check.name: check.status for check in checks} == {
        "causality": "pass",
        "prefill-decode": "pass",
        "window-split": "pass",
        "padding": "pass",
        "reset": "pass",
        "batch-rows": "not-applicable",
    }


def test_a_ladder_adds_up(config: BuildConfig) -> None:
    report = compared(config, "torch,onnxruntime", is_ladder=True)
    ladder = report.ladder
    assert only(report).passed
    assert ladder is not None
    assert ladder.reference == "torch"
    assert ladder.steps[0].name == "trace"
    assert ladder.largest in {step.name for step in ladder.steps}
    assert sum(step.share for step in ladder.steps) == pytest.approx(1)


def test_a_file_and_a_page_are_written(
    built_bundles: BuiltBundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, outputs = tmp_path / "report.html", tmp_path / "outputs.npz"
    page.write_text("old")
    code, found = run(
        capsys,
        built_bundles.yaml(),
        *("--targets", "torch,onnxruntime", "--level", "layer", "--tokens", 2),
        *("--html", page, "--save", outputs),
    )
    assert (code, found["passed"]) == (0, True)
    assert "<title>model: onnxruntime against torch</title>" in page.read_text(encoding="utf-8")
    assert len(reread(outputs).prompts) >= 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["outputs.npz", "report.html"]


@pytest.mark.slow
def test_another_bundle_of_the_user_is_left_alone(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    yaml = built_bundles.variant(tmp_path)
    theirs = built_bundles.copy(tmp_path / "workspace" / "tiny")
    manifest = (theirs / "manifest.json").read_bytes()
    other = load_config(yaml, overrides=["frontend.shape.input_ids=[[16],[32]]"])
    assert only(compared(other, "torch,llvm")).passed
    assert (theirs / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "workspace" / "compare" / "tiny" / "manifest.json").is_file()


def test_a_reference_that_reads_checkpoints_refuses_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: m.onnx, type: onnx, shape: {input_ids: [[16], [32]]}}\n"
        "backend: {type: llvm}\n"
    )
    for targets in ("torch,llvm", "onnxruntime@trace,torch"):
        with pytest.raises(RunError, match="'torch' reads a Hugging Face checkpoint") as caught:
            compared(load_config(path), targets)
        assert str(caught.value.where).startswith(f"{path}:1")


@pytest.mark.slow
def test_a_bundle_whose_residual_is_copied_is_judged_by_accumulated_errors(
    tmp_path: Path, built_bundles: BuiltBundles
) -> None:
    """With cast-dtype a norm reads a copy of the residual, which cannot be replaced there."""
    model = TinyModel(dtype="bf16")
    yaml = write_yaml(tmp_path / "model.yaml", model, built_bundles.checkpoint())
    tree = json.loads(yaml.read_text())
    tree |= {"passes": {"add": [{"cast-dtype": {"dtype": "bfloat16"}}]}, "verify": "off"}
    yaml.write_text(json.dumps(tree))
    config = load_config(yaml)
    report = compared(config, "torch,tvm_llvm", level="tap")
    assert only(report).passed
    assert all(tap.local is None for tap in only(report).taps)
    assert {tap.point for tap in only(report).taps if tap.is_recomputed} == {"o", "down"}
