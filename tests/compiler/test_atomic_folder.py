"""Folders appear whole or not at all, with renameat2 and without."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler import atomic_folder
from compiler.atomic_folder import partial_folder, put_new, swap


@pytest.fixture(params=[True, False], ids=["renameat2", "fallback"])
def has_renameat2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(atomic_folder, "_rename", lambda *_: False)
    return request.param


def make(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_put_where_nothing_is(tmp_path: Path, has_renameat2: bool) -> None:
    put_new(make(tmp_path / "new", "new"), tmp_path / "place")
    assert names(tmp_path) == ["place"], has_renameat2


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_new_folder_never_lands_on_another(
    tmp_path: Path, has_renameat2: bool, is_empty: bool
) -> None:
    new = make(tmp_path / "new", "new")
    place = tmp_path / "place"
    if is_empty:
        place.mkdir()
    else:
        make(place, "old")
    with pytest.raises(FileExistsError):
        put_new(new, place)
    assert names(tmp_path) == ["new", "place"], has_renameat2
    assert names(place) == ([] if is_empty else ["file"])


def test_a_swap_exchanges_both(tmp_path: Path, has_renameat2: bool) -> None:
    new, old = make(tmp_path / "new", "new"), make(tmp_path / "old", "old")
    swap(new, old)
    assert (old / "file").read_text() == "new"
    assert (new / "file").read_text() == "old"
    assert names(tmp_path) == ["new", "old"], has_renameat2


def test_a_swap_that_fails_half_way_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_folder, "_rename", lambda *_: False)
    old = make(tmp_path / "old", "old")
    with pytest.raises(FileNotFoundError):
        swap(tmp_path / "gone", old)
    assert names(tmp_path) == ["old"]
    assert (old / "file").read_text() == "old"


def test_what_is_not_put_in_place_is_removed(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "place") as folder:
        make(folder / "deep", "x")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".place.partial-")
    assert names(tmp_path) == []


def interrupted(destination: Path, act: Callable[[Path], object]) -> None:
    with partial_folder(destination) as folder:
        act(folder)
        raise KeyboardInterrupt


def test_an_error_removes_the_parents_that_were_made_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    seen: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a" / "b" / "c" / "place", seen.append)
    assert seen[0].parent == tmp_path / "a" / "b" / "c"
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


def test_a_parent_that_others_use_by_now_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(
            tmp_path / "a" / "place", lambda folder: make(folder.parent / "other", "theirs")
        )
    assert names(tmp_path / "a") == ["other"]


def age(folder: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(folder, (then, then))
    return folder


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    age(make(tmp_path / ".place.partial-0123abcd", "abandoned"), 3600)
    for other in (".place.partial-mine", ".other.partial-0123abcd", "place.partial-0123abcd"):
        age(make(tmp_path / other, "not ours"), 3600)
    make(tmp_path / ".place.partial-89abcdef", "just made")
    with partial_folder(tmp_path / "place") as folder:
        folder.rename(tmp_path / "place")
    assert names(tmp_path) == [
        ".other.partial-0123abcd",
        ".place.partial-89abcdef",
        ".place.partial-mine",
        "place",
        "place.partial-0123abcd",
    ]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "place") as first:
        age(first, 3600)
        with partial_folder(tmp_path / "place") as second:
            assert first.is_dir()
            assert second != first
