"""Profiles: every entry typed, overridden by options, and refused with its place."""

from pathlib import Path

import pytest

from compiler.contracts.errors import CompilerError
from targets.vacc.device import PROFILE_KEYS, profile_names, read_profile


def test_the_default_profile_is_whole_and_says_that_it_is_assumed() -> None:
    profile = read_profile({})
    assert profile_names() == ("assumed",)
    assert tuple(profile.facts()) == PROFILE_KEYS
    assert profile.tile_bytes == profile.onchip_bytes // 2
    text = Path("targets/vacc/profiles/assumed.yaml").read_text(encoding="utf-8")
    assert text.startswith("# No datasheet is public: every figure here is assumed.")


def test_options_and_a_base_change_single_entries(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: assumed\ndies: 2\ndtypes: [fp16]\n", encoding="utf-8")
    profile = read_profile({"profile": str(file), "onchip_bytes": 65536})
    assert (profile.dies, profile.dtypes, profile.onchip_bytes) == (2, ("fp16",), 65536)
    assert profile.memory_bytes == read_profile({}).memory_bytes


def test_every_wrong_entry_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "base: assumed\ndies: 0\nmemory: 5\ndtypes: [fp16, fp8]\nmatrix_tile: 16.5\n",
        encoding="utf-8",
    )
    with pytest.raises(CompilerError) as caught:
        read_profile({"profile": str(file), "alignment": "wide"})
    said = str(caught.value)
    for wanted in (
        f"{file}:2: dies: 0 is no positive integer",
        f"{file}:3: a profile has no entry 'memory'",
        f"{file}:4: dtypes: unknown: fp8; possible: fp16, int8",
        f"{file}:5: matrix_tile: 16.5 is no positive integer",
        "backend.compile.alignment: alignment: 'wide' is no positive integer",
    ):
        assert wanted in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dies: 4\n", "lacks memory_bytes, memory_bandwidth"),
        ("- 4\n", "a profile is a list of `entry: value` lines"),
        ("dies: [\n", "the profile cannot be read"),
        ("base: assumed\ndies: 1\ndies: 2\n", ":3: 'dies' stands twice"),
        ("base: nothing\n", ":1: there is no profile 'nothing'"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(CompilerError) as caught:
        read_profile({"profile": str(file)})
    assert message in str(caught.value)


def test_an_unknown_name_lists_those_that_are_there() -> None:
    with pytest.raises(CompilerError, match="there is no profile 'big'") as caught:
        read_profile({"profile": "big"}, place="model.yaml:9")
    assert (caught.value.where, caught.value.hint) == (
        "model.yaml:9",
        "profiles: assumed; or write a file: ./mine.yaml",
    )
