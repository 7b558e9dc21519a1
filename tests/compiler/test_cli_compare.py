"""`compare` and `check` on the command line: what they pass on and what they print."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from compiler.cli import main
from compiler.contracts.comparison import (
    Comparison,
    Divergence,
    Finding,
    Ladder,
    LadderStep,
    Measures,
    Report,
    SemanticCheck,
    StepComparison,
    TapComparison,
    TensorStatus,
    TokenStrip,
)
from compiler.contracts.errors import ConfigError, MachineLacks
from compiler.workflows.comparing.inputs import DEFAULT_PROMPTS, InputOptions
from compiler.workflows.comparing.request import CompareRequest
from compiler.workflows.comparing.targets import TargetChoice

YAML = """\
frontend: {checkpoint: weights, type: huggingface, shape: {input_ids: [[16], [32]]}}
backend: {type: llvm}
"""
NAN = float("nan")
OFF = Measures(max_abs=1e-5, mean_abs=1e-6, max_rel=NAN, cosine=0.999, snr_db=math.inf)
TORCH, LLVM = TargetChoice("torch"), TargetChoice("tvm_llvm")


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a function in the place of a workflow, in a folder with model.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(YAML)

    def install(verb: str, function: Callable[..., object]) -> None:
        module = ModuleType(f"compiler.workflows.{verb}")
        setattr(module, verb, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


@pytest.fixture
def requests(workflow: Callable[..., None]) -> list[CompareRequest]:
    """What `compare` is asked; it finds that all is well."""
    asked: list[CompareRequest] = []

    def compare(config: object, request: CompareRequest, *, progress: object) -> Report:
        asked.append(request)
        return Report((comparison("pass"),))

    workflow("compare", compare)
    return asked


def step(status: TensorStatus, *, is_equal: bool = True) -> StepComparison:
    return StepComparison("prompt0/step0/logits", status, OFF, 1e-9, is_equal, 0.8, 0.5, False)


def comparison(
    status: TensorStatus, *, findings: tuple[Finding, ...] = (), first: Divergence | None = None
) -> Comparison:
    if status != "pass" and not findings:
        findings = (Finding(status, "prompt0/step0/logits", "it is off", "mend it"),)
    return Comparison(
        "torch",
        "tvm_llvm",
        "end-to-end",
        steps=(step(status),),
        strips=(TokenStrip("prompt0", 3, (11,), (12,), ()),),
        top1_agreement=1.0,
        top5_agreement=0.8,
        greedy_agreement=0.5,
        first_divergence=first,
        findings=findings,
        limits={"max_abs": 0.5},
    )


def found(monkeypatch_workflow: Callable[..., None], report: Report) -> None:
    monkeypatch_workflow("compare", lambda config, request, *, progress: report)


def refused(token: str) -> float:
    pytest.fail(f"{token} is no JSON")


def printed(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out, parse_constant=refused)


def test_compare_passes_its_options_on(requests, capsys):
    Path("prompts.txt").write_text("one\n\ntwo\n")
    Path("text.txt").write_text("\ufefflong ago")
    options = ["--targets", "torch, llvm,onnxruntime@trace", "--prompts", "prompts.txt"]
    options += ["--tokens", "3", "--seed", "7", "--level", "tap", "--text", "text.txt"]
    options += ["--save", "out.npz", "--ladder", "--semantic", "--allow-missing"]
    assert main(["compare", "model.yaml", *options, "--json"]) == 0
    assert requests == [
        CompareRequest(
            targets=(TORCH, LLVM, TargetChoice("onnxruntime", "trace")),
            inputs=InputOptions(prompts=("one", "two"), tokens=3, seed=7, has_random=False),
            level="tap",
            save=Path("out.npz"),
            text="long ago",
            is_ladder=True,
            is_semantic=True,
            allows_missing=True,
        )
    ]
    assert printed(capsys)["passed"] is True


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], CompareRequest((TORCH, LLVM))),
        (["--save", "o.npz"], CompareRequest((TORCH, LLVM), save=Path("o.npz"))),
        (["--against", "o.npz"], CompareRequest((LLVM,), against=Path("o.npz"))),
        (["--semantic"], CompareRequest((LLVM,), is_semantic=True)),
        (["--inputs", "i.npz"], CompareRequest((TORCH, LLVM), inputs_file=Path("i.npz"))),
        (
            ["--level", "layer"],
            CompareRequest((TORCH, LLVM), InputOptions(tokens=4), level="layer"),
        ),
        (
            ["--targets", "a/ref.npz,torch@bf16"],
            CompareRequest(
                (TargetChoice("", file=Path("a/ref.npz")), TargetChoice("torch", "bf16"))
            ),
        ),
    ],
)
def test_what_is_left_out(requests, options, expected):
    assert main(["compare", "model.yaml", *options]) == 0
    assert requests == [expected]
    assert requests[0].inputs.prompts == DEFAULT_PROMPTS


def test_compare_prints_one_object(workflow, capsys):
    tap = TapComparison(3, "q", "pass", "prompt0/prefill0", OFF, replace(OFF, max_rel=1e-7))
    one = replace(
        comparison("pass", first=Divergence(0, 3, 11, 12)),
        level="tap",
        taps=(tap,),
        perplexity=(math.inf, 8.5),
    )
    ladder = Ladder(
        "torch", (LadderStep("trace", 1e-6, 1e-7, NAN, 1e-6, 0.0),), "trace", None, "", "s"
    )
    check = SemanticCheck("causality", "pass", "holds")
    found(workflow, Report((one,), ladder, {"tvm_llvm": (check,)}, {"model": "x"}))
    assert main(["compare", "model.yaml", "--json"]) == 0
    measures = {"max_abs": 1e-5, "mean_abs": 1e-6, "max_rel": None, "cosine": 0.999, "snr_db": None}
    assert printed(capsys) == {
        "passed": True,
        "comparisons": [
            {
                "reference": "torch",
                "candidate": "tvm_llvm",
                "level": "tap",
                "steps": [
                    {
                        "name": "prompt0/step0/logits",
                        "status": "pass",
                        "measures": measures,
                        "kl": 1e-9,
                        "is_top1_equal": True,
                        "top5_overlap": 0.8,
                        "margin": 0.5,
                        "is_near_tie": False,
                    }
                ],
                "taps": [
                    {
                        "layer": 3,
                        "point": "q",
                        "status": "pass",
                        "call": "prompt0/prefill0",
                        "accumulated": measures,
                        "local": {**measures, "max_rel": 1e-7},
                        "is_recomputed": False,
                    }
                ],
                "strips": [
                    {
                        "name": "prompt0",
                        "prompt_tokens": 3,
                        "reference": [11],
                        "candidate": [12],
                        "near_ties": [],
                    }
                ],
                "top1_agreement": 1.0,
                "top5_agreement": 0.8,
                "greedy_agreement": 0.5,
                "near_ties": 0,
                "first_divergence": {"prompt": 0, "step": 3, "reference": 11, "candidate": 12},
                "perplexity": [None, 8.5],
                "findings": [],
                "limits": {"max_abs": 0.5},
                "passed": True,
            }
        ],
        "ladder": {
            "reference": "torch",
            "steps": [
                {
                    "name": "trace",
                    "max_abs": 1e-6,
                    "rms": 1e-7,
                    "share": None,
                    "total_max_abs": 1e-6,
                    "kl": 0.0,
                }
            ],
            "largest": "trace",
            "layer": None,
            "point": "",
            "said": "s",
        },
        "semantic": {
            "tvm_llvm": [
                {
                    "name": "causality",
                    "status": "pass",
                    "said": "holds",
                    "token": None,
                    "layer": None,
                    "max_rel": 0.0,
                    "limit": 0.0,
                }
            ]
        },
        "environment": {"model": "x"},
    }


NOTHING = Comparison("torch", "tvm_llvm", "end-to-end")
BROKEN = SemanticCheck("causality", "fail", "a later token is seen", token=3, layer=1)
UNTRIED = SemanticCheck("batch-rows", "not-applicable", "bundles hold one row")


@pytest.mark.parametrize(
    "report",
    [
        Report(),
        Report((NOTHING,)),
        Report((comparison("fail"),)),
        Report((comparison("nan"),)),
        Report((comparison("pass"), comparison("fail"))),
        Report((comparison("pass"),), semantic={"torch": (BROKEN,)}),
        Report(semantic={"torch": (UNTRIED,)}),
    ],
)
def test_a_failed_comparison_exits_with_1(workflow, capsys, report):
    found(workflow, report)
    assert main(["compare", "model.yaml", "--targets", "torch,llvm"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed"
    assert main(["compare", "model.yaml", "--targets", "torch,llvm", "--json"]) == 1
    assert printed(capsys)["passed"] is False


def test_saving_is_enough_where_nothing_else_was_asked_for(workflow, capsys):
    found(workflow, Report())
    assert main(["compare", "model.yaml", "--targets", "torch", "--save", "o.npz"]) == 0
    # llvm is missing, and was allowed to be: what was asked for was not compared.
    options = ["--targets", "torch,llvm", "--allow-missing", "--save", "o.npz"]
    assert main(["compare", "model.yaml", *options]) == 1


def test_compare_prints_tables(workflow, capsys):
    tap = TapComparison(3, "q", "fail", "prompt0/prefill0", OFF, replace(OFF, max_rel=0.25))
    fault = Finding("fault", "model.layers.3/q", "it is the first tap", "mend it", 3, "q")
    one = replace(
        comparison("fail", findings=(fault,), first=Divergence(0, 3, 11, 12)),
        taps=(tap,),
        top1_agreement=NAN,
        perplexity=(8.0, 9.0),
    )
    ladder = Ladder(
        "torch", (LadderStep("trace", 0.5, 0.25, 1.0, 0.5, 1e-6),), "trace", 3, "q", "trace it is"
    )
    found(workflow, Report((one,), ladder, {"tvm_llvm": (BROKEN,)}))
    assert main(["compare", "model.yaml", "--targets", "torch,llvm"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "tvm_llvm against torch, end-to-end",
        "prompt   steps  max abs  max rel    cosine  SNR dB     KL  top-1  near-ties",
        "prompt0      1    1e-05      nan  0.999000     inf  1e-09    1/1          0",
        "top-1 agreement undecided, top-5 80.0%, greedy 50.0%; 0 near-ties in 1 steps",
        "greedy decoding first differs in prompt 0, step 3: 11 against 12",
        "perplexity 9.0000 against 8.0000 (+12.50%)",
        "layer  accumulated  at  local  at  recomputed  wrong",
        "3              nan   q   0.25   q                  q",
        "fault: model.layers.3/q: it is the first tap",
        "  hint: mend it",
        "from torch, step by step",
        "step   max abs   rms    share  so far  KL so far",
        "trace      0.5  0.25  +100.0%     0.5      1e-06",
        "trace it is",
        "tvm_llvm by itself",
        "check      status  max rel  what",
        "causality  fail    0        a later token is seen",
        "failed",
    ]


def test_what_was_not_compared_is_said(workflow, capsys):
    found(workflow, Report((NOTHING,)))
    assert main(["compare", "model.yaml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "tvm_llvm against torch, end-to-end",
        "nothing was compared",
        "failed",
    ]


def test_a_report_is_written(requests, capsys):
    assert main(["compare", "model.yaml", "--html", "report.html", "--json"]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<title>model: tvm_llvm against torch</title>" in page
    assert printed(capsys)["passed"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--targets", "torch,lvm"], "no target is named 'lvm'"),
        (["--targets", "torch,"], "no target is named ''"),
        (["--targets", "torch@,llvm"], "'torch@' ends with an @"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--inputs", "i.npz", "--prompts", "p.txt"], "--inputs and --prompts both say"),
        (["--against", "o.npz", "--inputs", "i.npz"], "--inputs has no say"),
        (["--against", "o.npz", "--prompts", "p.txt"], "--prompts has no say"),
        (["--targets", "o.npz,torch", "--tokens", "4"], "--tokens has no say"),
        (["--text", "none.txt"], "none.txt cannot be read: No such file"),
        (["--text", "."], ". cannot be read: Is a directory"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8: 'utf-8' codec"),
    ],
)
def test_wrong_arguments_of_compare(workflow, capsys, options, message):
    workflow("compare", lambda *_, **__: pytest.fail("it ran"))
    Path("p.txt").write_text("one\n")
    Path("latin.txt").write_bytes(b"\xe9")
    assert main(["compare", "model.yaml", *options, "--json"]) == 2
    (error,) = printed(capsys)["errors"]
    assert error["message"].startswith(message)


@pytest.mark.parametrize("option", ["--save", "--html"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none/out", "cannot be written: No such file or directory"),
        ("model.yaml/out", "cannot be written: Not a directory"),
        (".", "what is there is not a file"),
        ("folder", "what is there is not a file"),
        ("model.yaml", "--{option} would replace"),
        ("./folder/../model.yaml", "--{option} would replace"),
        ("link.yaml", "--{option} would replace"),
        ("p.txt", "--{option} would replace"),
        ("text.txt", "--{option} would replace"),
    ],
)
def test_a_place_is_refused_before_the_work(workflow, capsys, option, place, message):
    workflow("compare", lambda *_, **__: pytest.fail("it ran"))
    Path("folder").mkdir()
    Path("link.yaml").symlink_to("model.yaml")
    Path("p.txt").write_text("one\n")
    Path("text.txt").write_text("one\n")
    options = ["--prompts", "p.txt", "--text", "text.txt"]
    assert main(["compare", "model.yaml", *options, option, place, "--json"]) == 2
    (error,) = printed(capsys)["errors"]
    assert error["message"].startswith(message.format(option=option[2:]))
    assert error["where"] == place.removeprefix("./")
    assert Path("model.yaml").read_text() == YAML
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        ("folder", "link.yaml", "model.yaml", "p.txt", "text.txt")
    )


@pytest.mark.parametrize("option", ["--against", "--inputs"])
def test_what_is_read_is_not_replaced(workflow, capsys, option):
    workflow("compare", lambda *_, **__: pytest.fail("it ran"))
    assert main(["compare", "model.yaml", option, "o.npz", "--save", "o.npz", "--json"]) == 2
    assert "would replace a file" in printed(capsys)["errors"][0]["message"]


def test_two_results_do_not_share_a_file(workflow, capsys):
    workflow("compare", lambda *_, **__: pytest.fail("it ran"))
    assert main(["compare", "model.yaml", "--save", "x", "--html", "./x", "--json"]) == 2
    (error,) = printed(capsys)["errors"]
    assert error["message"] == "--html would replace a file that this command reads or writes"
    assert not Path("x").exists()


def test_a_candidate_is_not_replaced_while_it_is_read(workflow, capsys):
    workflow("compare", lambda *_, **__: pytest.fail("it ran"))
    options = ["--targets", "torch,old.npz", "--save", "old.npz", "--json"]
    assert main(["compare", "model.yaml", *options]) == 2
    assert "would replace a file" in printed(capsys)["errors"][0]["message"]


def test_a_folder_is_checked_by_itself(workflow, capsys):
    calls = []

    def check_bundle(path: Path, *, seed: int) -> Report:
        calls.append((path, seed))
        return Report(semantic={"tiny": (SemanticCheck("causality", "pass", "holds"),)})

    workflow("check_bundle", check_bundle)
    Path("bundle").mkdir()
    options = ["--semantic", "--seed", "4", "--html", "r.html", "--json"]
    assert main(["compare", "bundle", *options]) == 0
    assert calls == [(Path("bundle"), 4)]
    assert printed(capsys)["semantic"]["tiny"][0]["name"] == "causality"
    assert "<title>bundle: tiny</title>" in Path("r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            [],
            "is a folder, expected a YAML",
            "name the YAML; or check a bundle by itself, with --s",
        ),
        (
            ["--semantic", "--targets", "torch"],
            "--targets is of no use to a bundle",
            "leave it out",
        ),
        (["--semantic", "--allow-missing"], "--allow-missing is of no use", "leave it out"),
        (["--semantic", "--set", "name=x"], "--set is of no use to a bundle", "leave it out"),
        (["--semantic", "--level", "tap"], "--level is of no use to a bundle", "leave it out"),
        (["--semantic", "--save", "o.npz"], "--save is of no use to a bundle", "leave it out"),
    ],
)
def test_a_folder_with_options_of_a_yaml(workflow, capsys, options, message, hint):
    workflow("check_bundle", lambda *_, **__: pytest.fail("it ran"))
    Path("bundle").mkdir()
    assert main(["compare", "bundle", *options, "--json"]) == 2
    (error,) = printed(capsys)["errors"]
    assert (error["where"], error["code"]) == ("bundle", "usage")
    assert error["message"].startswith(message)
    assert error["hint"].startswith(hint)


@dataclass(frozen=True)
class Module:
    phase: str
    nodes: int


@dataclass(frozen=True)
class Sizes:
    disk_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class StandInPlan:
    target: str
    sizes: Sizes
    modules: tuple[Module, ...]
    missing: str | None = None
    passes: tuple[str, ...] = ("a", "b")


PLAN = StandInPlan("tvm_llvm", Sizes(540_000_000, 1_200_000_000), (Module("prefill", 900),))


def test_check_prints_the_plan(workflow, capsys):
    workflow("check", lambda config: SimpleNamespace(ok=True, errors=(), plan=PLAN))
    assert main(["check", "model.yaml"]) == 0
    captured = capsys.readouterr()
    assert [line.split() for line in captured.out.splitlines()] == [
        ["target", "tvm_llvm"],
        ["sizes.disk", "540", "MB"],
        ["sizes.memory", "1.20", "GB"],
        ["missing", "-"],
        ["passes", "a,", "b"],
        [],
        ["modules"],
        ["phase", "nodes"],
        ["prefill", "900"],
    ]
    assert captured.err == "model.yaml can be built\n"


def test_check_as_json(workflow, capsys):
    found = (ConfigError("wrong", where="m:1:2", hint="mend it"), MachineLacks("no tvm"))
    workflow("check", lambda config: SimpleNamespace(ok=False, errors=found, plan=PLAN))
    assert main(["check", "model.yaml", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "errors": [
            {"code": "config", "message": "wrong", "where": "m:1:2", "hint": "mend it"},
            {"code": "machine-lacks", "message": "no tvm", "where": None, "hint": None},
        ],
        "plan": {
            "target": "tvm_llvm",
            "sizes": {"disk_bytes": 540_000_000, "memory_bytes": 1_200_000_000},
            "modules": [{"phase": "prefill", "nodes": 900}],
            "missing": None,
            "passes": ["a", "b"],
        },
    }


def test_check_keeps_its_form_for_a_wrong_yaml(workflow, capsys):
    workflow("check", lambda config: pytest.fail("it ran"))
    options = ["check", "model.yaml", "--set", "backend.dtype=int9", "--target", "lvm"]
    assert main([*options, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["plan"]) == (False, None)
    assert [error["code"] for error in found["errors"]] == ["bad-value", "unknown-name"]
    assert main(options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "2 errors"
