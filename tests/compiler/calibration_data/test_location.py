"""What type, name and path lead to."""

from pathlib import Path

import pytest

from compiler.calibration_data.exam_csv import texts_of_ceval
from compiler.calibration_data.json_array import texts_of_alpaca
from compiler.calibration_data.json_lines import texts_of_json_lines
from compiler.calibration_data.location import form_of, located
from compiler.calibration_data.plain_text import texts_of_file
from compiler.contracts.errors import ConfigError, DatasetError


@pytest.mark.parametrize(
    ("kind", "name", "read", "is_joined"),
    [
        ("huggingface", "c4", texts_of_json_lines, False),
        ("huggingface", "ceval", texts_of_ceval, True),
        ("huggingface", "alpaca", texts_of_alpaca, True),
        ("text", None, texts_of_file, True),
        ("jsonl", None, texts_of_json_lines, False),
    ],
)
def test_each_kind_has_its_reader(kind: str, name: str | None, read: object, is_joined: bool):
    form = form_of(kind, name)
    assert (form.read, form.is_joined) == (read, is_joined)


def test_a_path_needs_a_name():
    with pytest.raises(ConfigError, match=r"dataset\.name does not say what it holds") as caught:
        form_of("huggingface", None)
    assert caught.value.hint is not None
    assert "c4, ceval, alpaca" in caught.value.hint


def test_a_name_is_for_a_dataset():
    with pytest.raises(ConfigError, match="`name: c4` is for `type: huggingface`, which is text"):
        form_of("text", "c4")


def test_a_file_is_relative_to_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    form = form_of("text", None)
    assert located("data/a.txt", base=tmp_path, form=form) == tmp_path / "data/a.txt"
    assert located("/data/a.txt", base=tmp_path, form=form) == Path("/data/a.txt")
    assert located("~/a.txt", base=tmp_path, form=form) == Path("/home/somebody/a.txt")
    assert located(".", base=tmp_path, form=form) == tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("c4", "c4-train.00000-of-01024.json.gz"),
        ("c4", "part.jsonl"),
        ("ceval", "ceval-exam.zip"),
        ("alpaca", "alpaca_data.json"),
    ],
)
def test_a_folder_stands_for_its_one_file(tmp_path: Path, name: str, file: str):
    for other in (file, "README.md", f".{file}"):
        (tmp_path / other).touch()
    (tmp_path / "en.json.zip").mkdir()
    form = form_of("huggingface", name)
    assert located(".", base=tmp_path, form=form) == tmp_path / file


def test_a_folder_of_several_is_refused(tmp_path: Path):
    (tmp_path / "c4").mkdir()
    for number in range(6):
        (tmp_path / "c4" / f"{number}.json.gz").touch()
    with pytest.raises(DatasetError) as caught:
        located("c4", base=tmp_path, form=form_of("huggingface", "c4"))
    assert caught.value.message.startswith("holds 6 files that end with .json.gz or .jsonl.gz or ")
    assert caught.value.message.endswith(": 0.json.gz, 1.json.gz, 2.json.gz, 3.json.gz, and 2 more")
    assert caught.value.where == str(tmp_path / "c4")
    assert caught.value.hint == "name one: `path: c4/0.json.gz`"


@pytest.mark.parametrize(("files", "there"), [([], "none"), (["a.txt", "b.csv"], "a.txt, b.csv")])
def test_a_folder_without_any_is_refused(tmp_path: Path, files: list[str], there: str):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(DatasetError) as caught:
        located(".", base=tmp_path, form=form_of("huggingface", "ceval"))
    assert caught.value.message == f"holds no file that ends with .zip (there are: {there})"


def test_a_folder_that_may_not_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def deny(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(DatasetError, match="cannot be read: Permission denied"):
        located(".", base=tmp_path, form=form_of("huggingface", "c4"))
