"""Alpaca's array, object by object."""

import json
from pathlib import Path

import pytest

from compiler.calibration_data import json_array
from compiler.calibration_data.byte_source import BLOCK_BYTES
from compiler.calibration_data.json_array import texts_of_alpaca
from compiler.calibration_data.limits import ReadLimits
from compiler.contracts.errors import DatasetError

GOOD = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


def texts(path: Path, limits: ReadLimits | None = None) -> list[str]:
    return list(texts_of_alpaca(path, limits or ReadLimits()))


def write(folder: Path, text: str) -> Path:
    path = folder / "alpaca.json"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, limits: ReadLimits | None = None) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        texts(path, limits)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("indent", [None, 2])
def test_each_object_is_one_text(tmp_path: Path, indent: int | None):
    records = [GOOD, {"instruction": 'Sag "ä" \\ {[,]}', "input": "", "output": "ä\nö"}]
    path = write(tmp_path, json.dumps(records, indent=indent, ensure_ascii=False))
    assert texts(path) == ["Add.\n1 and 2\n3\n", 'Sag "ä" \\ {[,]}\nä\nö\n']


@pytest.mark.parametrize("text", ["[]", " [ \n ] \n"])
def test_an_empty_array_has_no_text(tmp_path: Path, text: str):
    assert texts(write(tmp_path, text)) == []


def test_objects_may_be_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks of every small size give the texts of one large block."""
    records = [{**GOOD, "output": 'e\\u00e4\\ "x" é中' * 3, "n": [1.5e3, None, True]}, GOOD]
    path = write(tmp_path, json.dumps(records, indent=1))
    wanted = texts(path)
    for size in range(1, 40):
        monkeypatch.setattr("compiler.calibration_data.byte_source.BLOCK_BYTES", size)
        assert texts(path) == wanted, size


def test_an_object_larger_than_a_block_is_parsed_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tries = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[object, int]:
            tries.append(len(s))
            return super().raw_decode(s, idx)

    monkeypatch.setattr(json_array.json, "JSONDecoder", Counting)
    large = {**GOOD, "output": "x" * (40 * BLOCK_BYTES)}
    assert [len(text) > 40 * BLOCK_BYTES for text in texts(write(tmp_path, json.dumps([large])))]
    assert 5 <= len(tries) <= 8


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ('{"instruction": "a"}', "not JSON: this is no JSON array: it does not begin with", ":1"),
        ("\n\nwords", "not JSON: this is no JSON array", ":3"),
        ("  \n", "not JSON: this is no JSON array", ":2"),
        ('[\n"a"]', "not JSON: expected object 1, which begins with '{'", ":2"),
        ("[{GOOD},\n]", "not JSON: expected object 2", ":2"),
        ("[{GOOD}\n{GOOD}]", "not JSON: expected ',' or ']' behind object 1", ":2"),
        ("[{GOOD}", "not JSON: expected ',' or ']' behind object 1", ":1"),
        ("[{GOOD}]\n\nx", "not JSON: there is more behind the array", ":3"),
        ('[{GOOD},\n{"instruction": "cu', "not JSON: the file ends within object 2", ":2"),
        ('[{GOOD},\n{"instruction": tr', "not JSON: the file ends within object 2", ":2"),
        (
            '[{GOOD},\n{"a" 1, "b": "a long rest that is behind it"},\n{GOOD}]',
            "not JSON: Expecting ':' delimiter (object 2)",
            ":2:6",
        ),
        (
            '[{GOOD},\n{"a": "one\ntwo", "b": "a long rest that is behind it"}]',
            "not JSON: Invalid control character at (object 2)",
            ":2:11",
        ),
        ('[\n{"a": ' + "[" * 100_000 + "]", "not JSON: maximum recursion depth", ":2"),
        ('[\n{"a": ' + "9" * 5000 + "}]", "not JSON: Exceeds the limit", ":2"),
        (
            '[{GOOD},\n{"prompt": "a", "output": "b"}]',
            "there is no 'instruction' (there are: 'prompt', 'output')",
            ":2",
        ),
        ('[{"instruction": "a", "output": "b"}]', "there is no 'input'", ":1"),
        ('[{"instruction": "a", "input": "", "output": ["b"]}]', "'output' is not text", ":1"),
        ('[{"instruction": "\\udc00", "input": "", "output": ""}]', "'instruction' holds ha", ":1"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, text: str, message: str, place: str):
    path = write(tmp_path, text.replace("{GOOD}", json.dumps(GOOD)))
    error = refusal(path)
    assert error.message.startswith(message)
    assert error.where == f"{path}{place}"


def test_lines_are_counted_behind_many_blocks(tmp_path: Path):
    body = ",\n".join(json.dumps(GOOD) for _ in range(3000))
    path = write(tmp_path, f"[{body},\n{{'a': 1, 'b': 'and so on'}}]")
    assert path.stat().st_size > 2 * BLOCK_BYTES
    error = refusal(path)
    assert (
        error.message == "not JSON: Expecting property name enclosed in double quotes (object 3001)"
    )
    assert error.where == f"{path}:3001:2"


def test_an_object_over_the_limit_is_refused(tmp_path: Path, peak_bytes):
    limits = ReadLimits(document_bytes=1 << 18)
    path = write(tmp_path, "[{GOOD},\n".replace("{GOOD}", json.dumps(GOOD)) + '{"a": "')
    with path.open("a") as stream:
        for _ in range(32):
            stream.write("x" * (1 << 20))
    peak, error = peak_bytes(lambda: refusal(path, limits))
    assert error.message == f"object 2 is longer than {1 << 18} characters"
    assert error.where == f"{path}:2"
    assert peak < 4 << 20


def test_an_object_is_measured_once_it_is_whole(tmp_path: Path):
    text = json.dumps(GOOD)
    path = write(tmp_path, f"[{text}]")
    assert texts(path, ReadLimits(document_bytes=len(text)))
    assert refusal(path, ReadLimits(document_bytes=len(text) - 1)).code == "too-large"


def test_it_reads_no_further_than_it_is_asked(tmp_path: Path):
    path = write(tmp_path, f"[{json.dumps(GOOD)}," + " " * (2 * BLOCK_BYTES) + "damage")
    found = texts_of_alpaca(path, ReadLimits())
    assert next(found).startswith("Add.")
    with pytest.raises(DatasetError, match="expected object 2"):
        next(found)
