"""`python -m compiler` in a process of its own, as a user starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(*arguments: str | Path) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "compiler", *map(str, arguments)]


def environment(**changed: str) -> dict[str, str]:
    """This process's, with the sources first on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changed}


def run_compiler(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end; it must exit with `code`."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_json(*arguments: str | Path, cwd: Path, code: int = 0) -> dict[str, object]:
    """What a verb prints with `--json`: one object and nothing else."""
    return json.loads(run_compiler(*arguments, "--json", cwd=cwd, code=code).stdout)


def run_python(code: str, *arguments: str | Path, cwd: Path) -> dict[str, object]:
    """What a Python program prints as JSON; it must succeed, with nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def alive(pids: Sequence[int]) -> list[int]:
    """Those of `pids` that still run (a zombie does not)."""
    import psutil

    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found
