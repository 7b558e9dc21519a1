"""The acceptance run's table: what was wanted, what was measured, and whether it holds."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from compiler_process import ROOT
from machine_load import bandwidth, wait_for_quiet

from targets.llvm.features import detect

FILE = ROOT / "build" / "acceptance.md"
_TOOLS = ("apache-tvm", "torch", "transformers", "onnx", "numpy")


@dataclass
class Table:
    """A Markdown file that grows by a row for each figure.

    Attributes:
        read_speed: Bytes a second of memory, by number of threads.
    """

    file: Path
    read_speed: dict[int, float]

    def judge(self, what: str, *, wanted: str, measured: str, is_met: bool) -> None:
        """Write a row, and fail where the figure is missed."""
        self.note(what, wanted=wanted, measured=measured, verdict="pass" if is_met else "FAIL")
        assert is_met, f"{what}: wanted {wanted}, measured {measured}"

    def note(self, what: str, *, wanted: str = "", measured: str, verdict: str = "") -> None:
        """Write a row that no verdict hangs on."""
        row = f"| {what} | {wanted} | {measured} | {verdict} |"
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{row}\n")
        print(f"\n{row}")


def begin_table() -> Table:
    """A new file with the machine on top."""
    wait_for_quiet(limit_seconds=120)
    speeds = {threads: bandwidth(threads) for threads in (1, 2)}
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    reads = ", ".join(f"{speed / 1e9:.1f} GB/s with {n}" for n, speed in speeds.items())
    tools = ", ".join(f"{name} {version(name)}" for name in _TOOLS)
    head = (
        "# Acceptance run\n\n"
        f"Sources {described.stdout.strip()}; {platform.machine()}, {os.cpu_count()} cores; "
        f"flags {' '.join(detect().flags) or 'none'}; Python {platform.python_version()}, {tools}. "
        f"Memory read (numpy sum, threads): {reads}.\n\n"
        "| what | wanted | measured | verdict |\n|---|---|---|---|\n"
    )
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(head, encoding="utf-8")
    return Table(FILE, speeds)
