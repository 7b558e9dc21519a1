"""Text as stretches, and the text that comes with the package."""

import tomllib
from importlib import resources
from pathlib import Path

import pytest
from compiler_process import ROOT

from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.plain_text import DEFAULT_TEXT, texts_of_default, texts_of_file
from compiler.contracts.errors import DatasetError


def stretches(folder: Path, data: bytes) -> list[str]:
    path = folder / "a.txt"
    path.write_bytes(data)
    return list(texts_of_file(path, ReadLimits()))


def test_stretches_end_with_a_line_and_join_to_the_text(tmp_path: Path):
    text = "".join(f"line {number} of ein größeres Stück 文\n" * 3 for number in range(4000))
    found = stretches(tmp_path, text.encode())
    assert "".join(found) == text
    assert len(found) > 3
    assert all(stretch.endswith("\n") for stretch in found)


def test_a_long_line_is_cut(tmp_path: Path):
    text = "文" * 300_000
    found = stretches(tmp_path, text.encode())
    assert "".join(found) == text
    assert max(map(len, found)) < 100_000


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_line_end_is_a_line_feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr("compiler.calibration_data.byte_source.BLOCK_BYTES", size)
    assert "".join(stretches(tmp_path, b"a\r\nb\rc\n\r\nd\r")) == "a\nb\nc\n\nd\n"


def test_what_is_no_text_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="not UTF-8 at byte 3"):
        stretches(tmp_path, b"abc\xff")


def test_the_default_text_is_shipped_and_whole():
    resource = resources.files("compiler.calibration_data") / DEFAULT_TEXT
    text = resource.read_text(encoding="utf-8")
    assert "".join(texts_of_default(ReadLimits())) == text
    assert 40_000 < len(text.encode()) < 64_000
    assert text.endswith("\n")


def test_the_wheel_holds_the_default_text():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["package-data"]["compiler.calibration_data"]
    assert listed == [DEFAULT_TEXT]


@pytest.mark.parametrize(
    "kind", ["def ", "#include", "SELECT", '"order":', "答", "Grüßen", "écluse", "aceitunas"]
)
def test_the_default_text_has_many_registers(kind: str):
    text = "".join(texts_of_default(ReadLimits()))
    assert kind in text
