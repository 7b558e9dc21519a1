"""What else runs on this machine, and the memory of this process, from Linux's /proc (proc(5))."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

# Cores' worth of work by others, above which a measurement is not counted.
QUIET_CORES = 0.12
_SECONDS_A_TICK = 1 / os.sysconf("SC_CLK_TCK")


def others_seconds() -> float:
    """Processor seconds that everybody but this process has used since the machine started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields)
    total = (user + nice + system + irq + softirq + steal) * _SECONDS_A_TICK
    own = os.times()
    return total - own.user - own.system


def measured(work: Callable[[], Value]) -> tuple[Value, float]:
    """What `work` returns, and the load of others while it ran, in cores."""
    began, others = time.perf_counter(), others_seconds()
    value = work()
    elapsed = time.perf_counter() - began
    return value, max(0.0, others_seconds() - others) / elapsed


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far, mapped files that it read included."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, "Linux has a VmHWM for every process with memory"
    return 1024 * int(found[1])
