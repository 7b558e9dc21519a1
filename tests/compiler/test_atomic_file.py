"""A file that appears whole or not at all: what is in the way, and what an error leaves."""

import os
from pathlib import Path

import pytest

from compiler.atomic_file import check_place, partial_file
from compiler.contracts.errors import RunError


def written(path: Path, text: str = "new") -> None:
    with partial_file(path) as partial:
        assert partial.parent == path.resolve().parent
        assert partial.read_bytes() == b""
        partial.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with partial_file(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with partial_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_who_reads_it(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        written(tmp_path / "out")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(tmp_path: Path, is_there: bool) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "out"
    if is_there:
        target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(Path("far", "out"))
    written(link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert (names(tmp_path), names(tmp_path / "far")) == (["far", "link"], ["out"])


def in_the_way(folder: Path, what: str) -> Path:
    path = folder / "out"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to a folder":
        (folder / "far").mkdir()
        path.symlink_to("far")
    else:
        path.symlink_to("out")
    return path


@pytest.mark.parametrize("what", ["folder", "pipe", "link to a folder", "link to itself"])
def test_what_is_no_file_stays(tmp_path: Path, what: str) -> None:
    path = in_the_way(tmp_path, what)
    before = (names(tmp_path), path.lstat().st_ino)
    for attempt in (written, check_place):
        with pytest.raises(RunError, match="what is there is not a file") as caught:
            attempt(path)
        assert (caught.value.where, caught.value.code) == (str(path), "cannot-write")
    assert (names(tmp_path), path.lstat().st_ino) == before


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("none/out", "No such file or directory"),
        ("file/out", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("old")
    for attempt in (written, check_place):
        with pytest.raises(RunError) as caught:
            attempt(tmp_path / place)
        assert caught.value.message == f"cannot be written: {reason}"
        assert caught.value.where == str(tmp_path / place)
        assert caught.value.hint == "name a file in a folder that exists and that you may write"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RunError, match="cannot be written: Permission denied"):
        check_place(tmp_path / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupt_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    def interrupted() -> None:
        with partial_file(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    def full() -> None:
        with partial_file(tmp_path / "out"):
            raise OSError(28, os.strerror(28))

    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        full()
    assert names(tmp_path) == []


def test_asking_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    check_place(path)
    assert names(tmp_path) == []
    path.write_text("old")
    check_place(path)
    assert (path.read_text(), names(tmp_path)) == ("old", ["out"])
