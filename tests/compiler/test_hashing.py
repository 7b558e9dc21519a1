import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compiler import hashing
from compiler.contracts.errors import MachineLacks

CONTENT = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(hashing, "sha256_of", counting)
    return read


def test_sha256_of_a_file(weights: Path):
    assert hashing.sha256_of(weights) == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_read_once(weights: Path, hashed: list[Path]):
    digests = {hashing.remembered_sha256(weights) for _ in range(3)}
    assert digests == {hashlib.sha256(CONTENT).hexdigest()}
    assert hashed == [weights]


def test_a_link_shares_the_entry_of_its_file(weights: Path, hashed: list[Path], cache: Path):
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert hashing.remembered_sha256(link) == hashing.remembered_sha256(weights)
    assert hashed == [weights]
    assert len(list((cache / "sha256").iterdir())) == 1


def test_a_flipped_byte_behind_restored_times_is_noticed(weights: Path, hashed: list[Path]):
    before = hashing.remembered_sha256(weights)
    times = weights.stat()
    weights.write_bytes(CONTENT[:-1] + b"!")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_mtime_ns == times.st_mtime_ns
    assert hashing.remembered_sha256(weights) != before
    assert len(hashed) == 2


def test_a_file_changed_while_it_is_hashed_is_not_remembered(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def changing(path: Path) -> str:
        path.write_bytes(b"other")
        return "0" * 64

    monkeypatch.setattr(hashing, "sha256_of", changing)
    hashing.remembered_sha256(weights)
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b'{"identity": [], "sha256": "x"}', b"[" * 100_000]
)
def test_a_damaged_entry_is_ignored_and_rewritten(
    weights: Path, hashed: list[Path], cache: Path, damage: bytes
):
    expected = hashing.remembered_sha256(weights)
    (entry,) = cache.rglob("*.json")
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    assert hashing.remembered_sha256(weights) == expected
    assert entry.read_bytes() == whole
    assert len(hashed) == 2


def test_an_entry_whose_digest_is_no_sha256_is_ignored(weights: Path, cache: Path):
    expected = hashing.remembered_sha256(weights)
    (entry,) = cache.rglob("*.json")
    entry.write_text(json.dumps({**json.loads(entry.read_bytes()), "sha256": "../../x"}))
    assert hashing.remembered_sha256(weights) == expected


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(weights: Path, cache: Path):
    cache.write_text("a file where the folder should be")
    assert hashing.remembered_sha256(weights) == hashlib.sha256(CONTENT).hexdigest()
    assert cache.read_text() == "a file where the folder should be"


def test_many_at_once_leave_one_whole_entry(weights: Path, cache: Path):
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: hashing.remembered_sha256(weights), range(40)))
    assert digests == {hashlib.sha256(CONTENT).hexdigest()}
    (entry,) = (cache / "sha256").iterdir()
    assert json.loads(entry.read_bytes())["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        hashing.remembered_sha256(tmp_path / "absent")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hashing.user_cache() == tmp_path / "cache"
    monkeypatch.setenv("GRAPHLOWER_CACHE", "~/chosen")
    assert hashing.user_cache() == tmp_path / "chosen"
    monkeypatch.delenv("GRAPHLOWER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hashing.user_cache() == tmp_path / "xdg" / "graphlower"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert hashing.user_cache() == tmp_path / ".cache" / "graphlower"


def test_without_a_home_folder_the_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GRAPHLOWER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(hashing.Path, "home", no_home)
    with pytest.raises(MachineLacks) as caught:
        hashing.user_cache()
    assert caught.value.hint == "set GRAPHLOWER_CACHE to a folder"
