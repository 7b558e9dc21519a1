"""Objects with "text" a line, and every way not to be one."""

import gzip
import json
import zlib
from pathlib import Path

import pytest

from compiler.calibration_data.json_lines import texts_of_json_lines
from compiler.calibration_data.limits import ReadLimits
from compiler.contracts.errors import DatasetError

HINT = 'write one {"text": "..."} a line'


def texts(path: Path) -> list[str]:
    return list(texts_of_json_lines(path, ReadLimits()))


def test_texts_come_in_order(tmp_path: Path):
    wanted = ["one\ntwo", "", "中文 \u2028 and more", "a \0 that JSON may hold"]
    records = [{"text": text, "url": "https://example.org", "n": 1} for text in wanted]
    data = "\n \n".join(json.dumps(record) for record in records) + "\n\n"
    (tmp_path / "a.jsonl").write_text(data, encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(data.encode()))
    assert texts(tmp_path / "a.jsonl") == wanted
    assert texts(tmp_path / "a.json.gz") == wanted


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        ('{"text": "half', "not JSON: Unterminated string starting at", ":10"),
        ("plain words", "not JSON: Expecting value", ":1"),
        ('{"text": "a"} {"text": "b"}', "not JSON: Extra data", ":15"),
        ('["a"]', "holds no JSON object", ""),
        ('{"text": 5}', "'text' is not text", ""),
        ('{"text": null}', "'text' is not text", ""),
        ('{"content": "a", "id": 3}', "there is no 'text' (there are: 'content', 'id')", ""),
        ("{}", "there is no 'text' (there are: none)", ""),
        ("[" * 100_000, "not JSON: maximum recursion depth exceeded", ""),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit (4300", ""),
    ],
)
def test_another_line_is_refused(tmp_path: Path, line: str, message: str, column: str):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        texts(path)
    assert caught.value.message.startswith(message)
    assert caught.value.where == f"{path}:3{column}"
    assert caught.value.hint == HINT


def test_many_columns_are_counted(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({f"k{number}": 0 for number in range(12)}), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"'k0', .* 'k7', 4 more\)"):
        texts(path)


def test_half_a_character_is_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ab\\ud800c"}', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"half a character \(a lone surrogate\) at 2") as caught:
        texts(path)
    assert caught.value.where == f"{path}:1"


def test_lines_before_the_damage_are_read(tmp_path: Path):
    """What is not needed is not looked at: a download may still be going on."""
    packer = zlib.compressobj(wbits=31)
    whole = packer.compress(b'{"text": "good"}\n' * 5) + packer.flush(zlib.Z_FULL_FLUSH)
    path = tmp_path / "a.json.gz"
    path.write_bytes(whole)
    found = texts_of_json_lines(path, ReadLimits())
    assert [next(found) for _ in range(5)] == ["good"] * 5
    with pytest.raises(DatasetError, match="is damaged behind byte 85 of its text"):
        next(found)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, peak_bytes):
    path = tmp_path / "a.json.gz"
    line = json.dumps({"text": "word " * 2000}).encode() + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(2000):
            stream.write(line)
    peak, count = peak_bytes(lambda: sum(1 for _ in texts_of_json_lines(path, ReadLimits())))
    assert count == 2000
    assert peak < 1 << 20 < len(line) * count
