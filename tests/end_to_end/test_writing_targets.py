"""The tutorial on targets is the example's package, and every command of it is run."""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

import pytest
from compiler_process import ROOT, environment
from example_installation import EXAMPLE, install_example
from tutorial_shell import run_shell, shows

from compiler.conformance import check_names

PAGE = ROOT / "docs" / "writing-targets.md"
_BLOCK = re.compile(r'^```(\w+)(?: (\w+)="(\S+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
_INSTALL = "python -m pip install ./example_plugin"


def blocks() -> list[tuple[str, str, str, str]]:
    """(language, key, value, content) of every fenced block."""
    return _BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def code_of(page: Sequence[tuple[str, str, str, str]]) -> str:
    """The module that the page shows piece by piece; a method stands in the class before it."""
    pieces: list[str] = []
    for language, key, _, content in page:
        if language != "python":
            continue
        pieces.append(f"\n{indent(content, '    ')}" if key == "method" else f"\n\n{content}")
    return "".join(pieces).lstrip("\n")


def test_the_code_is_the_examples() -> None:
    (toml,) = [content for _, _, value, content in blocks() if value == "pyproject.toml"]
    written = {"pyproject.toml": toml, "graphlower_example.py": code_of(blocks())}
    files = {file.name: file.read_text(encoding="utf-8") for file in EXAMPLE.iterdir()}
    assert written == {name: text for name, text in files.items() if name in written}
    assert len(written["graphlower_example.py"].splitlines()) < 60
    imported = re.findall(r"^from (compiler\S*)", written["graphlower_example.py"], re.MULTILINE)
    assert all(name.startswith("compiler.contracts.") for name in imported)


def test_every_check_has_its_row() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]
    assert named == list(check_names())


@pytest.mark.slow
def test_the_commands_work(tmp_path: Path) -> None:
    site = tmp_path / "site"
    env = environment(PYTHONPATH=f"{site}:{environment()['PYTHONPATH']}")
    printed: list[str] = []
    shown = 0
    for language, key, _, content in blocks():
        if key:
            continue
        if language == "text":
            assert shows(printed, content.splitlines()), "\n".join(printed)
            shown += 1
            continue
        assert language == "console"
        first, *others = [line.removeprefix("$ ") for line in content.splitlines()]
        assert first == _INSTALL
        # Without a network, and beside the interpreter's own packages.
        install_example(site, tmp_path)
        outputs = [run_shell(command, tmp_path, env=env) for command in others]
        assert all(outputs), "a command printed nothing"
        printed = "".join(outputs).splitlines()
    assert shown == 1
    assert any(re.match(r"example +- +graphlower-example +bundles +yes +yes", x) for x in printed)
