"""A new pass is written with a test that passes, and never over something."""

import subprocess
import sys
from pathlib import Path

import pytest
from compiler_process import environment

from compiler.contracts.errors import ConfigError
from compiler.pass_kit import try_pass
from compiler.registry import load_pass
from compiler.workflows.new_pass import new_pass


def test_what_is_written_passes_its_own_test(tmp_path: Path):
    made = new_pass("square-norms", folder=tmp_path / "mine")
    assert made.entry == "./square_norms.py:SquareNorms"
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "square_norms.py",
        "test_square_norms.py",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(made.test)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_what_is_written_is_a_pass_that_matches(tmp_path: Path):
    made = new_pass("square-norms", folder=tmp_path)
    rewriting = load_pass(made.entry, base=tmp_path)()
    tried = try_pass(rewriting, graphs=6)
    assert tried.passed
    assert rewriting.name == "square-norms"


def test_the_house_rules_hold_for_what_is_written(tmp_path: Path):
    made = new_pass("square-norms", folder=tmp_path)
    root = Path(__file__).parents[3]
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            ["ruff", *arguments, "--config", str(root / "pyproject.toml"), str(made.file)],
            env={"PATH": str(Path(sys.executable).parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Square", "square", "square_norms", "-x", "a--b", "é-x", "1-a"])
def test_a_bad_name_is_refused(name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="is not the name of a pass"):
        new_pass(name, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is a pass named 'fold-mask', of graphlower"):
        new_pass("fold-mask", folder=tmp_path)


@pytest.mark.parametrize("existing", ["square_norms.py", "test_square_norms.py"])
def test_an_existing_file_is_left_alone(existing: str, tmp_path: Path):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ConfigError, match=f"{existing}: exists already"):
        new_pass("square-norms", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"
