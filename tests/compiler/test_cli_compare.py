"""`compare` and `check` on the command line: what they pass on and what they print."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from compiler.cli import main
from compiler.contracts.comparison import Comparison, Divergence, TensorComparison, TensorStatus
from compiler.contracts.errors import ConfigError, MachineLacks

YAML = """\
frontend: {checkpoint: weights, type: huggingface, shape: {input_ids: [[16], [32]]}}
backend: {type: llvm}
"""


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a function in the place of a workflow, in a folder with model.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(YAML)

    def install(verb: str, function: Callable[..., object]) -> None:
        module = ModuleType(f"compiler.workflows.{verb}")
        setattr(module, verb, function)
        module.DEFAULT_PROMPTS = ("default",)  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def comparison(status: TensorStatus, *, first: Divergence | None = None) -> Comparison:
    tensors = (TensorComparison("prompt0/step0/logits", status, 1e-5, float("nan"), 0.999),)
    return Comparison("torch", "tvm_llvm", "end-to-end", tensors, 1.0, 0.5, first, min_greedy=0.5)


def test_compare_prints_one_object(workflow, capsys):
    calls = []

    def compare(config, **options):
        options.pop("progress")
        calls.append(options)
        return (comparison("pass", first=Divergence(0, 3, 11, 12)),)

    workflow("compare", compare)
    Path("prompts.txt").write_text("one\n\ntwo\n")
    options = [
        "--targets",
        "torch,llvm",
        "--prompts",
        "prompts.txt",
        "--tokens",
        "3",
        "--seed",
        "7",
    ]
    assert main(["compare", "model.yaml", *options, "--json"]) == 0
    assert calls == [
        {"targets": ("torch", "tvm_llvm"), "prompts": ("one", "two"), "tokens": 3, "seed": 7}
    ]
    assert json.loads(capsys.readouterr().out) == {
        "passed": True,
        "comparisons": [
            {
                "reference": "torch",
                "candidate": "tvm_llvm",
                "level": "end-to-end",
                "tensors": [
                    {
                        "name": "prompt0/step0/logits",
                        "status": "pass",
                        "max_abs": 1e-05,
                        "max_rel": None,
                        "cosine": 0.999,
                    }
                ],
                "top1_agreement": 1.0,
                "greedy_agreement": 0.5,
                "first_divergence": {"prompt": 0, "step": 3, "reference": 11, "candidate": 12},
            }
        ],
    }


@pytest.mark.parametrize("result", [(), (comparison("fail"),), (comparison("nan"),)])
def test_a_failed_comparison_exits_with_1(workflow, capsys, result):
    workflow("compare", lambda config, **options: result)
    assert main(["compare", "model.yaml", "--targets", "torch,llvm"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed"


def test_compare_prints_a_table(workflow, capsys):
    workflow("compare", lambda config, **options: (comparison("pass"),))
    assert main(["compare", "model.yaml", "--targets", "torch,llvm"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tvm_llvm against torch, end-to-end",
        "tensor                status  max abs  max rel    cosine",
        "prompt0/step0/logits    pass    1e-05      nan  0.999000",
        "top-1 agreement 100.0% (at least 100.0%), greedy agreement 50.0% (at least 50.0%)",
        "passed",
    ]


@pytest.mark.parametrize(
    ("options", "prompts", "message"),
    [
        (["--targets", "torch"], None, "'torch' does not name two different targets"),
        (["--targets", "llvm,tvm_llvm"], None, "'llvm,tvm_llvm' does not name two different targ"),
        (["--targets", "torch,lvm"], None, "no target is named 'lvm'"),
        (["--targets", "torch,llvm", "--tokens", "0"], None, "--tokens is 0"),
        (["--targets", "torch,llvm", "--seed", "-1"], None, "--seed is -1"),
        (["--targets", "torch,llvm", "--prompts", "none"], None, "cannot be read: No such file"),
        (["--targets", "torch,llvm", "--prompts", "p.txt"], b" \n", "holds no prompt"),
        (["--targets", "torch,llvm", "--prompts", "p.txt"], b"\xff", "is not UTF-8: 'utf-8' codec"),
        (["--targets", "torch,llvm", "--prompts", "p.json"], b"{}", "is not a list of texts"),
        (["--targets", "torch,llvm", "--prompts", "p.json"], b"[", "is not JSON: Expecting value"),
    ],
)
def test_wrong_arguments_of_compare(workflow, capsys, options, prompts, message):
    workflow("compare", lambda config, **options: pytest.fail("it ran"))
    if prompts is not None:
        Path(options[-1]).write_bytes(prompts)
    assert main(["compare", "model.yaml", *options, "--json"]) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert error["message"].startswith(message)


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
