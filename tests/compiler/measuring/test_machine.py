"""The load of others and the memory of this process, as /proc has them."""

import time

import numpy as np

from compiler.measuring import measured, others_seconds, peak_resident_bytes, read_bandwidth


def test_own_work_is_no_load_of_others() -> None:
    def busy() -> str:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return "done"

    before = others_seconds()
    value, others = measured(busy)
    assert value == "done"
    assert 0 <= others < 64
    assert others_seconds() >= before - 0.05


def test_the_peak_holds_what_was_touched() -> None:
    before = peak_resident_bytes()
    held = np.ones(before // 8 + 8_000_000)
    assert peak_resident_bytes() - before > 30_000_000
    assert held.all()


def test_memory_is_read_at_some_speed() -> None:
    assert 1e7 < read_bandwidth(2, megabytes=8)() < 1e13
