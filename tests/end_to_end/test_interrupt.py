"""Ctrl-C in any stage of a build: exit 130, one short line, nothing left behind."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from built_bundles import TINY, TinyModel, write_tiny, write_yaml
from compiler_process import alive, command, environment

pytestmark = pytest.mark.slow

# Large enough that its package stage can be caught; trace and lower never read it.
WIDE = TinyModel("wide", vocabulary=400_000, layers=1)


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    return write_yaml(folder / "model.yaml", TINY, write_tiny(folder / "checkpoint", TINY))


@pytest.fixture(scope="module")
def wide_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted-wide")
    return write_yaml(folder / "model.yaml", WIDE, write_tiny(folder / "checkpoint", WIDE))


def lines_until(stream: IO[str], beginning: str) -> Iterator[str]:
    for line in stream:
        yield line
        if line.startswith(beginning):
            return
    raise AssertionError(f"the build ended before '{beginning}'")


@pytest.mark.parametrize(
    ("stage", "delay"),
    [
        ("trace ...", 0.1),  # while the child starts
        ("trace ...", 2.0),
        ("lower ...", 1.5),
        ("package: ", 0.0),  # a quarter is written
    ],
)
def test_an_interrupt_leaves_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, stage: str, delay: float
) -> None:
    yaml = request.getfixturevalue("wide_yaml" if stage.startswith("package") else "yaml")
    (tmp_path / "tmp").mkdir()
    build = subprocess.Popen(
        command(
            "build", yaml, "-o", tmp_path / "out" / "bundle", "--set", f"workspace.path={tmp_path}"
        ),
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path / "tmp")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal's Ctrl-C finds it
    )
    assert build.stderr is not None
    said = "".join(lines_until(build.stderr, stage))
    time.sleep(delay)
    children = [child.pid for child in psutil.Process(build.pid).children(recursive=True)]
    os.killpg(build.pid, signal.SIGINT)
    said += build.communicate()[1]

    assert build.returncode == 130, said
    assert said.endswith("interrupted\n")
    assert "Traceback" not in said
    assert "error" not in said.lower()
    assert children or stage.startswith("package")
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in alive(children)], timeout=10)
    assert left == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
