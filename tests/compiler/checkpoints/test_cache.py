import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from compiler.checkpoints.cache import cached_folder, require_space
from compiler.contracts.errors import MachineLacks
from compiler.contracts.progress import Progress


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def has_file(folder: Path) -> bool:
    return (folder / "file").is_file()


def fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def cached(entry: Path, make: Callable[[Path], None], progress: Progress | None = None) -> Path:
    return cached_folder(entry, is_whole=has_file, make=make, progress=progress or Progress())


def test_an_entry_is_made_once(tmp_path: Path):
    made: list[Path] = []

    def counting(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    for _ in range(2):
        assert cached(tmp_path / "c" / "entry", counting) == tmp_path / "c" / "entry"
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["entry"]


def test_a_damaged_entry_is_replaced(tmp_path: Path):
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "stale").touch()
    cached(tmp_path / "entry", fill)
    assert [path.name for path in (tmp_path / "entry").iterdir()] == ["file"]


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException):
    def fails(folder: Path) -> None:
        fill(folder)
        raise failure

    with pytest.raises(type(failure)):
        cached(tmp_path / "entry", fails)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path):
    (tmp_path / ".entry.partial").mkdir()
    (tmp_path / ".entry.partial" / "half").touch()
    (tmp_path / ".entry.lock").touch()
    cached(tmp_path / "entry", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_second_one_waits_and_takes_what_the_first_made(tmp_path: Path):
    entered, waited = threading.Event(), threading.Event()
    made: list[str] = []

    class Waiting(Progress):
        def note(self, text: str) -> None:
            made.append(text.split()[0])
            waited.set()

    def slow(folder: Path) -> None:
        entered.set()
        assert waited.wait(20)
        made.append("first")
        fill(folder)

    def never(folder: Path) -> None:
        made.append("second")

    first = threading.Thread(target=cached, args=(tmp_path / "entry", slow))
    first.start()
    assert entered.wait(20)
    cached(tmp_path / "entry", never, Waiting())
    first.join(20)
    assert made == ["waiting", "first"]
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_many_at_once_make_it_once(tmp_path: Path):
    made: list[Path] = []

    def counting(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    threads = [threading.Thread(target=cached, args=(tmp_path / "e", counting)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_cache_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(MachineLacks) as caught:
        cached(tmp_path / "blocked" / "entry", fill)
    assert caught.value.message.startswith("the cache cannot be filled")
    assert caught.value.hint is not None
    assert "GRAPHLOWER_CACHE" in caught.value.hint


def test_too_little_room_is_said_in_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 0, 1_500_000_000))
    require_space(tmp_path / "not" / "yet", 1_500_000_000, purpose="it")
    with pytest.raises(MachineLacks) as caught:
        require_space(tmp_path / "not" / "yet", 2_000_000_000, purpose="converting m.gguf")
    assert caught.value.message == "converting m.gguf needs 2.00 GB, 1.50 GB are free"
    assert caught.value.exit_code == 3
