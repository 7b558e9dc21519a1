"""`evaluate` on the command line: what it passes on, prints and exits with."""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from compiler.cli import main
from compiler.contracts.evaluation import Evaluation, ReferenceFigures

FIGURES = ReferenceFigures("torch", 10.0, 0.05, 0.01, 0.25, 0.98, 0)
FOUND = Evaluation("d" * 64, "0123456789abcdef", 300, 32, 10.5, FIGURES)
ALONE = replace(FOUND, reference=None, note="perplexity alone: name the checkpoint")


@dataclass
class Workflow:
    """In the place of the workflow: what it was asked, and what it answers."""

    answer: Evaluation
    asked: list[tuple[Path, dict[str, object]]]


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Workflow:
    stand_in = Workflow(FOUND, [])

    def evaluate(path: Path, request: dict[str, object], *, progress: object) -> Evaluation:
        stand_in.asked.append((path, request))
        return stand_in.answer

    module = ModuleType("compiler.workflows.evaluate")
    module.__dict__.update(evaluate=evaluate, EvaluateRequest=dict)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


def test_options_are_passed_on(workflow: Workflow):
    options = ["--tokens", "9", "--checkpoint", "weights", "--threads", "2"]
    assert main(["evaluate", "b", "--text", "t.txt", *options]) == 0
    assert main(["evaluate", "b", "--text", "t.txt", "--max-perplexity-increase", "0.1"]) == 0
    nothing = {"tokens": None, "checkpoint": None, "threads": None, "text": Path("t.txt")}
    given = {"tokens": 9, "checkpoint": "weights", "threads": 2}
    assert workflow.asked == [
        (Path("b"), {**nothing, **given, "needs_reference": False}),
        (Path("b"), {**nothing, "needs_reference": True}),
    ]


def test_one_object_is_printed(workflow: Workflow, capsys):
    workflow.answer = replace(FOUND, perplexity=math.nan)
    assert main(["evaluate", "b", "--text", "t.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "passed": True,
        "bundle": "d" * 64,
        "inputs": "0123456789abcdef",
        "tokens": 300,
        "context": 32,
        "perplexity": None,
        "reference": {
            "name": "torch",
            "perplexity": 10.0,
            "perplexity_increase": 0.05,
            "mean_kl": 0.01,
            "max_kl": 0.25,
            "top1_agreement": 0.98,
            "near_ties": 0,
        },
        "note": "",
    }


def test_lines_are_printed(workflow: Workflow, capsys):
    assert main(["evaluate", "b", "--text", "t.txt"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tokens                   300",
        "perplexity               10.5",
        "perplexity of torch      10",
        "increase                 +5.000%",
        "mean divergence          0.01 nats",
        "largest divergence       0.25 nats",
        "first tokens that agree  98.00%",
    ]


def test_perplexity_alone_says_how_to_get_the_rest(workflow: Workflow, capsys):
    workflow.answer = ALONE
    assert main(["evaluate", "b", "--text", "t.txt"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["tokens      300", "perplexity  10.5"]
    assert captured.err.splitlines() == [ALONE.note]


@pytest.mark.parametrize(
    ("increase", "limit", "code", "said"),
    [
        (0.05, "0.05", 0, "within the limit of +5.000%"),
        (0.0501, "0.05", 1, "over the limit of +5.000%"),
        (-0.2, "0", 0, "within the limit of +0.000%"),
        (math.nan, "9", 1, "over the limit of +900.000%"),
        (math.inf, "9", 1, "over the limit of +900.000%"),
    ],
)
def test_the_limit(workflow: Workflow, capsys, increase: float, limit: str, code: int, said: str):
    workflow.answer = replace(FOUND, reference=replace(FIGURES, perplexity_increase=increase))
    command = ["evaluate", "b", "--text", "t.txt", "--max-perplexity-increase", limit]
    assert main(command) == code
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert main([*command, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["passed"] is (code == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "1"], "--tokens is 1"),
        (["--threads", "0"], "--threads is 0"),
        (["--max-perplexity-increase", "-0.1"], "--max-perplexity-increase is -0.1"),
        (["--max-perplexity-increase", "nan"], "--max-perplexity-increase is nan"),
        (["--max-perplexity-increase", "inf"], "--max-perplexity-increase is inf"),
    ],
)
def test_wrong_numbers(workflow: Workflow, capsys, options: list[str], message: str):
    assert main(["evaluate", "b", "--text", "t.txt", *options, "--json"]) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert (error["message"], error["code"]) == (message, "usage")
    assert workflow.asked == []


def test_there_must_be_a_text(workflow: Workflow, capsys):
    assert main(["evaluate", "b", "--json"]) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert error["message"] == "the following arguments are required: --text"
