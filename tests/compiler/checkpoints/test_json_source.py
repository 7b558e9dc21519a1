from pathlib import Path

import pytest

from compiler.checkpoints.json_source import integer, object_from_json, read_json_object
from compiler.contracts.errors import CheckpointError


def test_an_object_is_read(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "b": [true, null, 1e-6]}')
    assert read_json_object(path) == {"a": 1, "b": [True, None, 1e-6]}


def test_an_error_has_its_line_and_column(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{\n  "a": 1,\n  "b" 2\n}')
    with pytest.raises(CheckpointError) as caught:
        read_json_object(path)
    assert caught.value.where == f"{path}:3:7"
    assert caught.value.message == "not JSON: Expecting ':' delimiter"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"[1]", "the JSON is not an object"),
        (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
        (b'{"x": {"b": 1, "b": 1}}', "the key 'b' is given twice"),
        (b'{"a":' * 200_000, "not readable as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
    ],
)
def test_what_is_refused(data: bytes, message: str):
    with pytest.raises(CheckpointError) as caught:
        object_from_json(data, where="F")
    assert caught.value.message.startswith(message)
    assert caught.value.where == "F"


def test_a_boolean_is_no_integer():
    assert integer({"a": True}, "a") is None
    assert integer({"a": 3}, "a") == 3
