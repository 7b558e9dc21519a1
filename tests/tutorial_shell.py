"""What the tests of tutorials share: a shell where `python` is this one, and what it must print."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compiler_process import environment


def run_shell(command: str, folder: Path, *, env: Mapping[str, str] | None = None) -> str:
    """What a command line prints; it must succeed."""
    whole = dict(env or environment())
    whole["PATH"] = f"{Path(sys.executable).parent}:{whole['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=whole,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def shows(output: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the lines stand in the output, in order; `...` is any text, or any lines."""
    position = 0
    for line in wanted:
        if line.strip() == "...":
            continue
        form = re.compile(".*".join(re.escape(part) for part in line.split("...")))
        found = (i for i in range(position, len(output)) if form.fullmatch(output[i]))
        position = next(found, -1) + 1
        if not position:
            return False
    return True
