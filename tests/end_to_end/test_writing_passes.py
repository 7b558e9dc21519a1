"""The tutorial on passes is followed to the letter: every block of it is used."""

import re
import tomllib
from pathlib import Path

import pytest
from checkpoint_factory import write_checkpoint
from compiler_process import ROOT
from tutorial_shell import run_shell, shows

from compiler import registry

PAGE = ROOT / "docs" / "writing-passes.md"
_BLOCK = re.compile(r'^```(\w+)(?: (\w+)="(\S+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
_BELOW = "        product.inputs = [queries, product.inputs[1]]\n"

pytestmark = pytest.mark.slow


def test_the_tutorial_works(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "Qwen2-0.5B-Instruct", hidden=32, heads=4, kv_heads=2, layers=2)
    printed: list[str] = []
    used: list[str] = []
    for kind, key, value, content in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        used.append(kind)
        file = tmp_path / value
        match kind, key:
            case "console", "":
                commands = [line.removeprefix("$ ") for line in content.splitlines()]
                outputs = [run_shell(command, tmp_path) for command in commands]
                assert all(outputs), "a command printed nothing"
                printed = "".join(outputs).splitlines()
            case "text", "":
                assert shows(printed, content.splitlines()), "\n".join(printed)
            case ("python", "title") if file.exists():
                assert file.read_text(encoding="utf-8") == content
            case (("python" | "yaml"), "title"):
                file.write_text(content, encoding="utf-8")
            case "python", "insert":
                text = file.read_text(encoding="utf-8")
                assert text.count(_BELOW) == 1
                file.write_text(text.replace(_BELOW, _BELOW + content), encoding="utf-8")
            case "toml", "":
                (group,) = tomllib.loads(content)["project"]["entry-points"]
                assert f'"{group}"' in Path(registry.__file__).read_text(encoding="utf-8")
            case _:
                raise AssertionError(f"nothing is done with a block of {kind} {key}")
    assert {"console", "text", "python", "yaml", "toml"} == set(used)
    (row,) = [line for line in printed if "square-norms" in line and "prefill" in line]
    assert row.split()[:3] == ["square-norms", "prefill", "5"]


def test_what_is_shown_must_be_printed() -> None:
    output = ["one 1", "two", "three 3 of 4"]
    assert shows(output, ["one ...", "three ... of 4"])
    assert shows(output, ["...", "two"])
    assert not shows(output, ["two", "one 1"])
    assert not shows(output, ["three 3"])
    assert not shows(output, ["four"])
