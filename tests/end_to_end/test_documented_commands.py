"""Every command and program that the documentation shows is run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from compiler_process import ROOT, environment

# A tutorial is one program from its first block to its last, with a test of its own.
TUTORIALS = ("writing-passes.md", "writing-targets.md")
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in TUTORIALS
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Whole builds besides the demo's, one of them with a calibration, and every step of a model read
# several times: minutes each.
_LONG = ("build models/smollm2-135m-", "--ladder", "--semantic")

pytestmark = [pytest.mark.slow, pytest.mark.model]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, content) of every fenced block in a language."""
    return [
        (page.name, content)
        for page in PAGES
        for kind, content in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == language
    ]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that a reader would type, each once.

    `make` has tests of its own.
    """
    lines = [(page, line) for page, content in blocks("console") for line in content.splitlines()]
    assert all(line.startswith("$ ") for _, line in lines), "a console block holds output"
    pages = {line[2:]: page for page, line in reversed(lines) if not line.startswith("$ make")}
    return [(page, command) for command, page in reversed(pages.items())]


def marks(command: str) -> list[pytest.MarkDecorator]:
    """What takes minutes is run by the acceptance run."""
    return [pytest.mark.accept] if any(part in command for part in _LONG) else []


@pytest.fixture(scope="module")
def checkout(trained_bundle: Path) -> Path:
    """A folder that looks like a checkout after `make demo`: `models/` and `build/<name>`."""
    folder = trained_bundle.parents[1]
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def run_shell(command: str, folder: Path) -> str:
    """A command line in a shell where `python` is this one."""
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment(PATH=path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(*one, marks=marks(one[1])) for one in commands()]
)
def test_a_documented_command_runs(page, command, checkout):
    assert run_shell(command, checkout).strip(), f"{page}: nothing was printed"


def test_the_documented_program_answers(checkout):
    (shown,) = (content for page, content in blocks("python") if page == "README.md")
    program = checkout / "documented.py"
    program.write_text(shown, encoding="utf-8")
    assert run_shell("python documented.py", checkout) == "The capital of France is Paris."


def test_the_documented_yaml_is_the_one_in_the_repository():
    shown = next(content for page, content in blocks("yaml") if page == "README.md")
    file = (ROOT / "models" / "smollm2-135m.yaml").read_text(encoding="utf-8")
    assert [line for line in file.splitlines() if not line.startswith("#")] == [
        line for line in shown.splitlines() if not line.startswith("#")
    ]
