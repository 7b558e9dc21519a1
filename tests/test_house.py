"""What the repository says of itself is true: commands, targets, pins, rows of the layering."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compiler import registry
from compiler.contracts.pass_base import Contract

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("compiler", "passes", "targets", "models")
# Where a module's name is not its distribution's.
DISTRIBUTIONS = {
    "google": "protobuf",
    "pydantic-core": "pydantic",
    "tvm": "apache-tvm",
    "tvm-ffi": "apache-tvm-ffi",
    "yaml": "pyyaml",
}
# Another release of these is known to fail, or changes what a build writes.
EXACT = {"apache-tvm", "apache-tvm-ffi", "torch"}


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    # Not what the make that runs these tests was told.
    told = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "TORCH_INDEX", "PIP_FLAGS")
    env = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    rules = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(phony[1].split()) == rules
    return rules


def requirements(lines: Sequence[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def code_blocks(text: str) -> Iterator[str]:
    for block in re.findall(r"^```(?:sh|console|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_each_make_command_of_a_document_is_a_target(document: str) -> None:
    lines = code_blocks((ROOT / document).read_text(encoding="utf-8"))
    plain = (line.removeprefix("$ ").partition("#")[0] for line in lines)
    commands = [line.split()[1:] for line in plain if line.startswith("make ")]
    named = {word for words in commands for word in words if "=" not in word}

    assert {"demo", "test"} <= named
    assert named <= make_targets()


def test_help_lists_every_target() -> None:
    listed = re.findall(r"^  make ([a-z]+) +\S", run("make", "help"), re.M)

    assert sorted(listed) == sorted(make_targets())


def test_torch_index_is_for_torch_alone() -> None:
    index = "https://index.example/simple"
    stamp = (".venv/installed", "--dry-run", "--always-make")

    installs = [
        line for line in run("make", *stamp, f"TORCH_INDEX={index}").splitlines() if index in line
    ]
    assert len(installs) == 1
    assert re.search(rf"install --quiet --no-deps --index-url {index} .*torch==", installs[0])
    assert "--index-url" not in run("make", *stamp)


def test_the_makefile_finds_the_pin_of_torch() -> None:
    pins = re.findall(r'"(torch==[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert pins == [str(requirements(PROJECT["project"]["dependencies"])["torch"])]


def test_continuous_integration_runs_the_documented_commands() -> None:
    script = ROOT / ".ci" / "run"
    run("bash", "-n", str(script))
    commands = re.findall(r"^make (\w+)", script.read_text(encoding="utf-8"), re.MULTILINE)

    assert os.access(script, os.X_OK)
    assert commands == ["check", "test"]


def test_what_is_installed_is_what_is_pinned() -> None:
    project = PROJECT["project"]
    pinned = requirements([*project["dependencies"], *project["optional-dependencies"]["test"]])
    wrong = {
        name: version
        for name, requirement in pinned.items()
        if not requirement.specifier.contains(version := metadata.version(name))
    }

    assert wrong == {}
    assert {name for name, one in pinned.items() if str(one.specifier).startswith("==")} == EXACT


def test_every_import_of_another_package_is_a_dependency() -> None:
    declared = set(requirements(PROJECT["project"]["dependencies"]))
    sources = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = {name for path in sources for name in imported(path)}
    foreign = names - sys.stdlib_module_names - set(PACKAGES)
    distributions = {canonicalize_name(name) for name in foreign}

    assert {"torch", "onnx", "tvm"} <= foreign
    assert {DISTRIBUTIONS.get(name, name) for name in distributions} - declared == set()


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


def _spelled(contract: Contract) -> str:
    """`close(1e-5, 1e-6)`, as the documentation writes it."""
    if contract.kind != "close":
        return f"{contract.kind}({', '.join(contract.outputs)})".removesuffix("()")
    numbers = (f"{number:.0e}".replace("e-0", "e-") for number in (contract.rtol, contract.atol))
    return f"close({', '.join(numbers)})"


def test_every_pass_is_documented() -> None:
    document = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([a-z0-9-]+)`\]\(#([a-z0-9-]+)\) \|(.*)$", document, re.MULTILINE)
    sections = re.findall(r"^## (.*)$", document, re.MULTILINE)

    assert sorted(sections) == sorted(registry.passes())
    assert [name for name, _, _ in rows] == [link for _, link, _ in rows] == sections
    for name, _, row in rows:
        kind = registry.load_pass(name)
        # A pass whose options decide its promise says so in words.
        if all(field.default is not MISSING for field in fields(kind)):
            assert _spelled(kind().promise()) in row, name
        named = [field.name for field in fields(kind)]
        named += [*kind.requires, *kind.after]
        assert {one for one in named if f"`{one}" not in row} == set(), name


def test_onnxruntime_is_imported_in_one_place() -> None:
    """Imported elsewhere first, it reports to its maker (`compiler.numerics.quiet_runtime`)."""
    imports = re.compile(r"^ *(?:import onnxruntime$|from onnxruntime import)", re.MULTILINE)
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("compiler", "passes", "targets", "models")
        for path in sorted((ROOT / package).rglob("*.py"))
        if imports.search(re.sub(r"if TYPE_CHECKING:\n(?: +.*\n|\n)*", "", path.read_text()))
    ]
    assert found == ["compiler/numerics/quiet_runtime.py"]


def test_contributing_shows_every_layer_and_marker() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    layers = {name.strip() for row in rows for name in row.split("|")} - {"__main__"}
    markers = {
        marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    }

    assert {name for name in layers | markers if f"`{name}`" not in contributing} == set()


@pytest.mark.parametrize(
    ("pattern", "sample"),
    [
        (r"(^|[^A-Za-z0-9_.])/(work|farm|root)/|/tmp/[a-z]+/", "/".join(["in ", "work", "x"])),
        (r"\<issue #?[0-9]+\>", "see issue " + "7"),
    ],
    ids=["places of one machine", "numbers that only its authors can look up"],
)
def test_the_repository_speaks_of_the_project_alone(pattern: str, sample: str) -> None:
    command = ("git", "grep", "-nIiE", "-e", pattern, "--", ".")
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert found.stderr == ""
    assert found.stdout == ""
    assert re.search(pattern.replace(r"\<", r"\b").replace(r"\>", r"\b"), sample)
