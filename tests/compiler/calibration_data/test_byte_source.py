"""Bytes within bounds: what is no file, no text, damaged or too large is named with its place."""

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.calibration_data.byte_source import BLOCK_BYTES, opened
from compiler.calibration_data.limits import ReadLimits
from compiler.contracts.errors import DatasetError

LIMITS = ReadLimits()
WORDS = b"".join(b"line %d of some text\n" % number for number in range(2000))


def lines(path: Path, limits: ReadLimits = LIMITS) -> list[str]:
    with opened(path, limits) as source:
        return [line.text for line in source.lines()]


def blocks(path: Path, limits: ReadLimits = LIMITS) -> str:
    with opened(path, limits) as source:
        return "".join(source.blocks())


def refusal(work: Callable[[], object]) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        work()
    assert caught.value.hint
    return caught.value


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("read", [lines, blocks])
def test_plain_and_packed_files_read_alike(tmp_path: Path, read):
    text = "\ufeffeins\r\nzwei äöü 中文 🦉\n\nend".encode()
    # Several gzip members in one file are one text.
    packed = gzip.compress(text[:9], mtime=0) + gzip.compress(text[9:])
    found = ["".join(read(write(tmp_path, "a.txt", text)))]
    found.append("".join(read(write(tmp_path, "a.txt.gz", packed))))
    assert found == ["eins\r\nzwei äöü 中文 🦉\n\nend"] * 2


def test_a_line_has_its_number(tmp_path: Path):
    path = write(tmp_path, "a.txt", b"one\ntwo\nthree")
    with opened(path, LIMITS) as source:
        assert [line.place for line in source.lines()] == [f"{path}:{n}" for n in (1, 2, 3)]
        assert source.offset == 13


def test_a_character_across_blocks_is_whole(tmp_path: Path):
    text = "x" * (BLOCK_BYTES - 1) + "中" * BLOCK_BYTES
    assert blocks(write(tmp_path, "a.txt", text.encode())) == text


def test_what_is_no_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path, "empty", b"")
    found = {
        name: refusal(lambda name=name: lines(tmp_path / name)).message
        for name in ("missing", ".", "pipe", "empty", "empty/file", "nul\0")
    }
    assert found == {
        "missing": "no such file",
        ".": "is a folder, not a file",
        "pipe": "is not a regular file",
        "empty": "is empty",
        "empty/file": "cannot be read: Not a directory",
        "nul\0": "cannot be read: embedded null byte",
    }
    hint = refusal(lambda: lines(tmp_path / "missing")).hint
    assert hint is not None
    assert "relative to the YAML's folder" in hint


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, "a.txt", b"text")

    def deny(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", deny)
    error = refusal(lambda: lines(path))
    assert (error.message, error.where) == ("cannot be read: Permission denied", str(path))


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, not"),
        ("a.json.gz", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not"),
        ("a.json", b"PAR1\x15\x04", "is a Parquet file"),
        ("a.json", gzip.compress(b"text", mtime=0), "is packed with gzip"),
        ("a.json", b"PK\x03\x04\x14", "is a zip archive"),
        ("a.json.gz", b'{"text": 1}', "is no gzip file, for all its name: it begins with b'{"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, name: str, head: bytes, message: str):
    path = write(tmp_path, name, head)
    assert refusal(lambda: lines(path)).message.startswith(message)


def test_what_is_not_utf8_is_refused_with_its_byte(tmp_path: Path):
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfgood\n" + "fünf".encode("latin-1") + b"\n")
    error = refusal(lambda: lines(path))
    assert (error.message, error.where) == ("not UTF-8 at byte 9", f"{path}:2")
    error = refusal(lambda: blocks(path))
    assert (error.message, error.where) == ("not UTF-8 at byte 9", str(path))


def test_the_byte_is_counted_over_a_cut_character(tmp_path: Path):
    data = b"x" * (BLOCK_BYTES - 1) + "ä".encode() + b"y\xffz"
    path = write(tmp_path, "a.txt", data)
    assert refusal(lambda: blocks(path)).message == f"not UTF-8 at byte {BLOCK_BYTES + 2}"
    path = write(tmp_path, "b.txt", b"x" * (BLOCK_BYTES - 1) + b"\xc3")
    assert refusal(lambda: blocks(path)).message == f"not UTF-8 at byte {BLOCK_BYTES - 1}"


def test_a_nul_byte_is_refused(tmp_path: Path):
    path = write(tmp_path, "a.txt", b"good\nba\0d\n")
    error = refusal(lambda: lines(path))
    assert (error.message, error.where) == ("not text: byte 7 is NUL", f"{path}:2")
    assert refusal(lambda: blocks(path)).message == "not text: byte 7 is NUL"


@pytest.mark.parametrize("read", [lines, blocks])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, read):
    packed = gzip.compress(WORDS, mtime=0)
    damaged = {
        "cut": packed[: len(packed) // 2],
        "cut in its head": packed[:5],
        "garbage behind it": packed + b"garbage",
        "another checksum": packed[:-8] + bytes(4) + packed[-4:],
        "damaged data": packed[:200] + b"\xff" * 20 + packed[220:],
    }
    for kind, data in damaged.items():
        path = write(tmp_path, "a.txt.gz", data)
        error = refusal(lambda path=path: read(path))
        assert error.message.startswith("is damaged behind byte "), kind
        assert error.where == str(path)


def test_a_line_over_the_limit_is_refused_before_it_is_held(tmp_path: Path, peak_bytes):
    """A bomb: 64 MB of one line in 64 kB."""
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b"first\n")
        for _ in range(64):
            stream.write(b" " * (1 << 20))
    limits = ReadLimits(document_bytes=1 << 20)
    peak, error = peak_bytes(lambda: refusal(lambda: lines(path, limits)))
    assert error.message == f"the line is longer than {1 << 20} bytes"
    assert error.where == f"{path}:2"
    assert peak < 8 << 20


def test_a_line_at_the_limit_is_read(tmp_path: Path):
    path = write(tmp_path, "a.txt", b"123\n456")
    assert lines(path, ReadLimits(document_bytes=4)) == ["123\n", "456"]
    assert refusal(lambda: lines(path, ReadLimits(document_bytes=3))).where == f"{path}:1"


@pytest.mark.parametrize("read", [lines, blocks])
def test_a_file_is_read_up_to_the_limit(tmp_path: Path, read):
    path = write(tmp_path, "a.txt", WORDS)
    read(path, ReadLimits(total_bytes=len(WORDS)))
    error = refusal(lambda: read(path, ReadLimits(total_bytes=len(WORDS) - 1)))
    assert error.message.endswith("bytes of it did not give the windows asked for")
