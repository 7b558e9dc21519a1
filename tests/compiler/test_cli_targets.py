"""`targets list`, `probe` and `test`: what they print, what they survive, how they exit."""

import json
import sys
from pathlib import Path

import pytest
from compiler_process import ROOT, environment, run_compiler, run_json, run_python
from example_installation import write_metadata

from compiler import registry
from compiler.cli import main
from compiler.contracts.errors import ConfigError

BUILT_IN = ["onnxruntime", "torch", "tvm_llvm", "tvm_vacc"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict:
    """What a verb prints with `--json`, in this process."""
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three targets that cannot be asked."""
    (tmp_path / "broken_plugin.py").write_text(
        "from compiler.contracts.target_base import Probe, Target\n"
        "class Half(Target):\n"
        "    name = 'half'\n"
        "    opens = 'bundle'\n"
        "class Unprobed(Target):\n"
        "    name = 'unprobed'\n"
        "    opens = 'bundle'\n"
        "    def open(self, model, *, threads=None, variant=''): ...\n"
        "    def probe(self): return 1 / 0\n",
        encoding="utf-8",
    )
    (tmp_path / "raising_plugin.py").write_text("raise RuntimeError('no card')\n", encoding="utf-8")
    points = {
        "half": "broken_plugin:Half",
        "unprobed": "broken_plugin:Unprobed",
        "raising": "raising_plugin:Any",
        "absent": "no_such_module_here:Any",
    }
    write_metadata(tmp_path, "broken-plugin", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("broken_plugin", "raising_plugin"):
        sys.modules.pop(name, None)
    return tmp_path


def test_every_target_is_listed_with_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "targets", "list")["targets"]
    assert [one["name"] for one in found] == BUILT_IN
    llvm = found[2]
    assert (llvm["aliases"], llvm["owner"], llvm["opens"]) == (["llvm"], "graphlower", "bundle")
    assert llvm["can_build"]
    assert llvm["can_run"]
    assert llvm["has_ranks"]
    assert found[1]["variants"] == ["bf16", "fp16"]
    assert not found[0]["can_build"]
    assert main(["targets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["onnxruntime", "-", "graphlower", "programs", "-", "yes", "one"]


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_is_said_and_the_others_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {one["name"]: one for one in run(capsys, "targets", "list")["targets"]}
    assert set(found) == {*BUILT_IN, "half", "unprobed", "raising", "absent"}
    problems = {name: one["problem"] for name, one in found.items() if one["problem"]}
    start = "target 'raising' of broken-plugin (raising_plugin:Any) cannot be loaded"
    assert problems.pop("raising") == f"{start}: RuntimeError: no card"
    assert "needs the module 'no_such_module_here'" in problems.pop("absent")
    assert problems.pop("half").endswith("'Half' is not a Target")
    assert problems.pop("unprobed") == "cannot be probed: ZeroDivisionError: division by zero"
    assert problems == {}
    assert found["raising"]["owner"] == "broken-plugin"
    assert all(found[name]["can_run"] for name in BUILT_IN)
    errors = run(capsys, "targets", "probe", "raising", code=2)["errors"]
    assert errors[0]["hint"] == "mend or uninstall broken-plugin"
    assert run(capsys, "targets", "probe", "absent", code=3)["errors"]


def test_probing_the_accelerator_says_drivers_profiles_and_tools(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(capsys, "targets", "probe", "vacc")
    assert (found["name"], found["can_build"], found["can_run"]) == ("tvm_vacc", True, True)
    assert set(found["facts"]) == {"drivers", "profiles", "tvm", "linker"}
    assert found["facts"]["drivers"] == "emulator"
    assert found["facts"]["profiles"] == "assumed"
    assert found["facts"]["tvm"].startswith("0.")
    assert found["facts"]["linker"]


def test_what_is_missing_is_printed_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from targets.vacc import target

    monkeypatch.setattr(target, "find_linker", lambda: None)
    assert main(["targets", "probe", "vacc"]) == 3
    shown = capsys.readouterr().out
    assert "missing      there is no C compiler: install gcc, or pip install ziglang" in shown
    errors = run(capsys, "targets", "test", "vacc", code=3)["errors"]
    assert errors[0]["message"].startswith("target 'tvm_vacc' cannot build here: there is no C")


def test_a_wrong_name_has_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    errors = run(capsys, "targets", "probe", "tvm_lvm", code=2)["errors"]
    assert errors[0]["hint"].startswith("did you mean 'tvm_llvm'?")
    errors = run(capsys, "targets", "tset", "llvm", code=2)["errors"]
    assert errors[0]["hint"] == "did you mean test?"
    errors = run(capsys, "targets", "test", "llvm", "--olny", "taps", code=2)["errors"]
    assert errors[0]["hint"] == "did you mean --only?"
    assert run(capsys, "targets", "test", "llvm", "--seed", "-1", code=2)["errors"]


def test_a_report_has_a_row_a_check_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--only", "probe", "--only", "constraints")
    found = run(capsys, "targets", "test", "onnxruntime", *only)
    assert [one["name"] for one in found["checks"]] == ["probe", "constraints"]
    assert found["passed"]
    assert main(["targets", "test", "onnxruntime", *only, "--only", "reload"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "onnxruntime conforms: 2 pass, 1 not applicable"
    assert [line.split()[0] for line in lines[1:4]] == ["probe", "constraints", "reload"]


def test_a_target_without_a_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kindless_plugin.py").write_text(
        "from compiler.contracts.target_base import Target\n"
        "class Kindless(Target):\n"
        "    name = 'kindless'\n"
        "    def open(self, model, *, threads=None, variant=''): ...\n"
        "    def probe(self): ...\n",
        encoding="utf-8",
    )
    write_metadata(tmp_path, "kindless", {"kindless": "kindless_plugin:Kindless"})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="target 'kindless' of kindless has no opens"):
        registry.load_target("kindless")


def test_listing_and_probing_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import contextlib, io, json, sys\n"
        "from compiler.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    codes = [main(['targets', 'list']), main(['targets', 'probe', 'vacc'])]\n"
        "heavy = ('torch', 'transformers', 'tvm', 'tvm_ffi', 'onnxruntime', 'onnx')\n"
        "print(json.dumps({'codes': codes, 'heavy': [n for n in heavy if n in sys.modules]}))\n"
    )
    assert run_python(program, cwd=tmp_path) == {"codes": [0, 0], "heavy": []}


HIDING = """
from importlib import metadata

_every = metadata.entry_points

def entry_points(**named):
    return () if str(named.get("group")).startswith("graphlower.") else _every(**named)

metadata.entry_points = entry_points
"""


@pytest.fixture
def without_plugins(tmp_path: Path) -> dict[str, str]:
    """The environment of processes in which no package brings anything by an entry point."""
    (tmp_path / "sitecustomize.py").write_text(HIDING, encoding="utf-8")
    return environment(PYTHONPATH=f"{tmp_path}:{ROOT}")


def test_without_its_entry_point_the_accelerator_is_not_installed(
    tmp_path: Path, without_plugins: dict[str, str]
) -> None:
    done = run_compiler("targets", "list", "--json", cwd=tmp_path, env=without_plugins)
    found = {one["name"]: one for one in json.loads(done.stdout)["targets"]}
    assert list(found) == BUILT_IN
    vacc = found.pop("tvm_vacc")
    assert vacc["problem"] == "target 'tvm_vacc' is not installed"
    assert not vacc["can_build"]
    assert all(one["can_run"] and one["problem"] is None for one in found.values())
    for verb in (("probe", "vacc"), ("test", "vacc")):
        done = run_compiler("targets", *verb, cwd=tmp_path, env=without_plugins, code=2)
        assert "target 'vacc' is not installed" in done.stderr


@pytest.mark.slow
def test_without_its_entry_point_every_other_target_works(
    built_bundles, tmp_path: Path, without_plugins: dict[str, str]
) -> None:
    yaml = built_bundles.variant(tmp_path / "model")
    build = ("build", yaml, "--target", "vacc", "--json")
    done = run_compiler(*build, cwd=tmp_path, env=without_plugins, code=2)
    (error,) = json.loads(done.stdout)["errors"]
    assert error["code"] == "not-installed"
    assert error["message"] == "target 'vacc' is not installed"
    assert error["hint"].startswith("installed: onnxruntime, torch, tvm_llvm; ")
    targets = ("--targets", "torch,llvm,onnxruntime", "--tokens", "2", "--json")
    done = run_compiler("compare", yaml, *targets, cwd=tmp_path, env=without_plugins)
    found = json.loads(done.stdout)
    assert found["passed"]
    assert [one["candidate"] for one in found["comparisons"]] == ["tvm_llvm", "onnxruntime"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch", "onnxruntime", "llvm", "vacc"])
def test_the_built_in_targets_conform(target: str, tmp_path: Path) -> None:
    found = run_json("targets", "test", target, cwd=tmp_path)
    checks = found["checks"]
    assert isinstance(checks, list)
    assert [one["name"] for one in checks if one["status"] == "fail"] == []
    assert sum(one["status"] == "pass" for one in checks) >= 11
