"""The command line: arguments, exit codes, what stands on stdout and on stderr."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from compiler.cli import main
from compiler.contracts.errors import CheckpointError, CompilerErrors, ConfigError, MachineLacks
from compiler.contracts.evaluation import Evaluation, ReferenceFigures
from compiler.contracts.pass_base import PassRecord, Skip
from compiler.contracts.progress import Progress, StageRecord

HEAVY = (
    "torch",
    "tvm",
    "tvm_ffi",
    "transformers",
    "onnxruntime",
    "onnx",
    "numpy",
    "pydantic",
    "rich",
)
YAML = """\
frontend: {checkpoint: weights, type: huggingface, shape: {input_ids: [[16], [32]]}}
backend: {type: llvm}
"""
BUILT = SimpleNamespace(
    bundle=Path("build/model"),
    digest="d" * 64,
    up_to_date=False,
    stages=(StageRecord("trace", 1.5, 400_000_000), StageRecord("package", 2.0, 1_230_000_000)),
    passes=(
        PassRecord("fold-mask", "prefill", 3, ()),
        PassRecord("fold-mask", "decode", 0, (Skip("model/Add", "no mask"),)),
    ),
    evaluation=None,
    calibrated=(),
)
EVALUATION = Evaluation(
    bundle="d" * 64,
    inputs="0123456789abcdef",
    tokens=300,
    context=32,
    perplexity=10.5,
    reference=ReferenceFigures("torch", 10.0, 0.05, 0.01, 0.25, 0.98, 3),
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model.yaml, and the current one."""
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(YAML)
    return tmp_path


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch, workspace: Path):
    """Puts a function in the place of a workflow."""

    def install(verb: str, function: Callable[..., object]) -> None:
        module = ModuleType(f"compiler.workflows.{verb}")
        setattr(module, verb, function)
        module.DEFAULT_PROMPTS = ("default",)  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def errors(output: str) -> list[dict[str, str]]:
    """The errors that `--json` printed; nothing but they."""
    found = json.loads(output)
    assert list(found) == ["errors"]
    return found["errors"]


@pytest.mark.parametrize(
    "verb",
    ["", "build", "run", "compare", "evaluate", "sensitivity", "check", "bisect", "passes"],
)
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys\nfrom compiler.cli import main\n"
        f"try: main({[verb, '--help'] if verb else ['--help']})\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"usage: python -m compiler {verb}".rstrip())
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_and_exits_with_the_code(workspace):
    command = [sys.executable, "-m", "compiler", "build", "none.yaml"]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(root)}
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: none.yaml: there is no such file\n  hint: check the path\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "the following arguments are required: VERB", "see python -m compiler --help"),
        (["biuld"], "argument VERB: invalid choice: 'biuld' (choose from", "did you mean build?"),
        (["build", "x", "--frce"], "unrecognized arguments: --frce", "did you mean --force?"),
        (["build"], "the following arguments are required: YAML", "see python -m compiler build"),
        (["build", "x", "--forc"], "unrecognized arguments: --forc", "did you mean --force?"),
        (["compare"], "the following arguments are required: YAML", "see python -m compiler comp"),
        (["compare", "x", "--level", "all"], "argument --level: invalid choice: 'all'", "see"),
        (["run", "x", "--max-tokens", "y"], "argument --max-tokens: invalid int value: 'y'", "see"),
    ],
)
def test_wrong_arguments(capsys, arguments, message, hint):
    assert main([*arguments, "--json"]) == 2
    (error,) = errors(capsys.readouterr().out)
    assert (error["code"], error["where"]) == ("usage", "command line")
    assert error["message"].startswith(message)
    assert error["hint"].startswith(hint)


def test_build_passes_its_options_on(workflow, capsys):
    calls = []

    def build(config, *, output, force, progress):
        calls.append((config.name, config.backend.type, config.backend.dtype, output, force))
        return BUILT

    workflow("build", build)
    options = ["--set", "backend.dtype=bf16", "--set", "name=x", "--target", "torch"]
    assert main(["build", "model.yaml", *options, "-o", "out", "--force", "--json"]) == 0
    assert calls == [("x", "torch", "bf16", Path("out"), True)]
    assert json.loads(capsys.readouterr().out) == {
        "bundle": "build/model",
        "digest": "d" * 64,
        "up_to_date": False,
        "stages": [
            {"name": "trace", "seconds": 1.5, "peak_rss_bytes": 400_000_000},
            {"name": "package", "seconds": 2.0, "peak_rss_bytes": 1_230_000_000},
        ],
        "passes": [
            {
                "name": "fold-mask",
                "phase": "prefill",
                "rewrites": 3,
                "skips": [],
                "error": None,
                "float64_error": None,
            },
            {
                "name": "fold-mask",
                "phase": "decode",
                "rewrites": 0,
                "skips": [{"node": "model/Add", "reason": "no mask"}],
                "error": None,
                "float64_error": None,
            },
        ],
        "evaluation": None,
        "calibrated": [],
    }


def test_build_shows_what_passes_did_to_the_numbers(workflow, capsys):
    measured = replace(BUILT.passes[0], error=0.0, float64_error=1.5e-6)
    built = SimpleNamespace(**{**vars(BUILT), "passes": (measured, BUILT.passes[1])})
    workflow("build", lambda *_, **__: built)
    assert main(["build", "model.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("pass "))
    assert [line.split() for line in lines[header : header + 3]] == [
        ["pass", "phase", "rewrites", "skips", "difference", "from", "float64"],
        ["fold-mask", "prefill", "3", "0", "0", "1.5e-06"],
        ["fold-mask", "decode", "0", "1", "-", "-"],
    ]


def test_build_shows_the_evaluation(workflow, capsys):
    built = SimpleNamespace(**{**vars(BUILT), "evaluation": EVALUATION})
    workflow("build", lambda *_, **__: built)
    assert main(["build", "model.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-8:] == [
        "tokens                   300",
        "perplexity               10.5",
        "perplexity of torch      10",
        "increase                 +5.000%",
        "mean divergence          0.01 nats",
        "largest divergence       0.25 nats",
        "first tokens that agree  98.00%, 3 near-ties left out",
        "build/model",
    ]
    assert main(["build", "model.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == asdict(EVALUATION)


def test_build_prints_lines_where_there_is_no_terminal(workflow, capsys):
    def build(config, *, output, force, progress: Progress):
        progress.start("package")
        for done in range(101):
            progress.update(done * 10**7, 10**9, "bytes")
        progress.note("a remark")
        progress.finish(BUILT.stages[1])
        return BUILT

    workflow("build", build)
    assert main(["build", "model.yaml"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "package ...",
        "package: 250 MB of 1.00 GB",
        "package: 500 MB of 1.00 GB",
        "package: 750 MB of 1.00 GB",
        "a remark",
        "package: 2.0 s, peak 1.23 GB",
        "fold-mask (decode) skips model/Add: no mask",
    ]
    assert captured.out.splitlines() == [
        "stage    seconds  peak memory",
        "trace        1.5       400 MB",
        "package      2.0      1.23 GB",
        "all          3.5      1.23 GB",
        "pass         phase  rewrites  skips",
        "fold-mask  prefill         3      0",
        "fold-mask   decode         0      1",
        "build/model",
    ]
    assert main(["build", "model.yaml", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("build/model\n", "")


def test_a_build_leaves_a_log_once_its_input_is_good(workflow, workspace):
    def build(config, *, output, force, progress: Progress):
        progress.start("checkpoint")
        logging.getLogger("compiler.any").info("located %d tensors", 7)
        progress.start("trace")
        progress.note("a remark")
        progress.finish(BUILT.stages[0])
        return BUILT

    workflow("build", build)
    assert main(["build", "model.yaml", "--quiet"]) == 0
    text = (workspace / "build/logs/model.log").read_text()
    said = [line.split(": ", 1)[1] for line in text.splitlines()]
    assert said[0].startswith("build of model from model.yaml, config ")
    assert said[1:] == [
        "checkpoint begins",
        "located 7 tensors",
        "trace begins",
        "a remark",
        "trace took 1.50 s, peak memory 400 MB",
        "done",
    ]
    held = [h for h in logging.getLogger().handlers if "Memory" in type(h).__name__]
    assert held == []


def test_bad_input_leaves_the_disk_as_it_was(workflow, workspace, capsys):
    def build(config, *, output, force, progress: Progress):
        progress.start("checkpoint")
        raise CheckpointError("shard 2 is cut short", where="weights/2", hint="copy it again")

    workflow("build", build)
    assert main(["build", "model.yaml", "--json"]) == 2
    assert errors(capsys.readouterr().out) == [
        {
            "code": "checkpoint",
            "message": "shard 2 is cut short",
            "where": "weights/2",
            "hint": "copy it again",
        }
    ]
    assert [path.name for path in workspace.iterdir()] == ["model.yaml"]


def test_a_failed_build_says_where_its_log_is(workflow, workspace, capsys):
    def build(config, *, output, force, progress: Progress):
        progress.start("trace")
        raise MachineLacks("no memory")

    workflow("build", build)
    assert main(["build", "model.yaml"]) == 3
    log = workspace / "build/logs/model.log"
    assert f"the log is {log}" in capsys.readouterr().err
    assert log.read_text().splitlines()[-1].endswith("failed: MachineLacks: no memory")


def test_the_log_of_a_bug_holds_its_traceback(workflow, workspace, capsys):
    def build(config, *, output, force, progress: Progress):
        progress.start("trace")
        raise ZeroDivisionError("odd")

    workflow("build", build)
    assert main(["build", "model.yaml", "--quiet"]) == 70
    log = (workspace / "build/logs/model.log").read_text()
    assert "failed: ZeroDivisionError: odd\nTraceback (most recent call last):" in log
    assert log.splitlines()[-1] == "ZeroDivisionError: odd"


def test_every_error_of_a_yaml_is_printed(workspace, capsys):
    Path("model.yaml").write_text(YAML.replace("llvm", "lvm").replace("[16]", "[17]"))
    assert main(["build", "model.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: model.yaml:1:73: frontend.shape.input_ids[0][0]: 17 is not a positive "
        "multiple of 16\n"
        "  hint: the nearest is 16\n"
        "error: model.yaml:2:17: no target is named 'lvm'\n"
        "  hint: did you mean 'llvm'? Possible: llvm, onnxruntime, torch, tvm_llvm, tvm_vacc, "
        "vacc\n"
        "2 errors\n"
    )
    assert main(["build", "model.yaml", "--json"]) == 2
    assert [error["code"] for error in errors(capsys.readouterr().out)] == [
        "bad-value",
        "unknown-name",
    ]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (AssertionError("odd"), 70, "a bug in graphlower: AssertionError: odd"),
        (OSError(28, "No space left on device", "x"), 3, "No space left on device: x"),
        (OSError(5, "Input/output error", "x"), 70, "a bug in graphlower: OSError: [Errno 5] Inpu"),
        (CompilerErrors([ConfigError("a"), MachineLacks("b")]), 3, "a"),
    ],
)
def test_exit_codes(workflow, capsys, raised, code, message):
    def build(config, *, output, force, progress):
        raise raised

    workflow("build", build)
    assert main(["build", "model.yaml", "--json"]) == code
    captured = capsys.readouterr()
    assert errors(captured.out)[0]["message"].startswith(message)
    assert ("Traceback" in captured.err) == (code == 70)


def test_an_interrupt_is_a_short_line(workflow, capsys):
    def build(config, *, output, force, progress):
        raise KeyboardInterrupt

    workflow("build", build)
    assert main(["build", "model.yaml", "--quiet"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_reader_that_goes_away_is_no_error(workspace):
    code = (
        "import sys, types\n"
        "module = types.ModuleType('compiler.workflows.build')\n"
        "def build(config, **options):\n"
        "    print('x' * 10_000_000)\n"
        "module.build = build\n"
        "sys.modules[module.__name__] = module\n"
        "from compiler.cli import main\n"
        "sys.exit(main(['build', 'model.yaml', '--quiet']))\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
    process.stderr.close()
