"""Resident memory of a process and its descendants, seen from outside while it runs."""

import subprocess
import time
from pathlib import Path

import psutil


def resident_bytes(process: psutil.Process) -> int:
    """Of the process and all that it started."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def peak_of(running: subprocess.Popen[bytes], output: Path) -> int:
    """The most, sampled from here until it ends; it must succeed."""
    process, peak = psutil.Process(running.pid), 0
    while running.poll() is None:
        try:
            peak = max(peak, resident_bytes(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    assert running.wait() == 0, output.read_text()
    return peak
