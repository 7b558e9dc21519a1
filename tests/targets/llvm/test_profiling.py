"""What is timed, and what it must move, counted by hand; and that nothing else changes."""

import numpy as np
import pytest
from built_bundles import BuiltBundles

from compiler.contracts.profile import CallProfile
from compiler.contracts.runner import Runner
from compiler.stages.open_bundle import open_bundle
from targets.llvm.runner import LLVMRunner

TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture
def runner(built_bundles: BuiltBundles) -> Runner:
    return LLVMRunner(open_bundle(built_bundles.bundle()), threads=1)


def moved(profile: CallProfile, name: str, shape: str = "") -> tuple[int, int]:
    """Calls and bytes of a kernel."""
    rows = [row for row in profile.kernels if row.name == name and shape in row.shape]
    return sum(row.calls for row in rows), sum(row.moved_bytes for row in rows)


def test_a_prompt_of_two_windows_and_a_token(runner: Runner) -> None:
    prefill = runner.profile([7] * 40)
    assert runner.length == 40
    assert moved(prefill, "attention")[0] == 2 * 2
    decode = runner.profile([7])
    assert runner.length == 41
    # Queries and results of 4 heads of 16, keys and values of 41 rows of 2 heads, two lengths.
    assert moved(decode, "attention") == (2, 2 * (2 * 4 * 16 * 4 + 2 * 41 * 2 * 16 * 4 + 2 * 8))
    # A row from one place to another, keys and values.
    assert moved(decode, "cache_update") == (4, 4 * (2 * 2 * 16 * 4 + 2 * 8))
    head = 128 * 64 * 4 + 64 * 4 + 128 * 4
    assert moved(decode, "linear", "128x64 float32") == (1, head)
    # The row of a token, not the table: out of it and into its place.
    assert moved(decode, "take") == (1, 64 * 4 + 64 * 4 + 8)


def test_kernels_come_slowest_first_and_within_the_call(runner: Runner) -> None:
    profile = runner.profile(TOKENS)
    seconds = [row.seconds for row in profile.kernels]
    assert seconds == sorted(seconds, reverse=True)
    assert all(one > 0 for one in seconds)
    assert sum(seconds) < profile.seconds
    assert not any(row.name.startswith("vm.builtin") for row in profile.kernels)


def test_every_profile_is_of_one_call(runner: Runner) -> None:
    first = runner.profile(TOKENS)
    runner.rewind(0)
    again = runner.profile(TOKENS)
    assert sorted((row.name, row.shape, row.calls, row.moved_bytes) for row in first.kernels) == (
        sorted((row.name, row.shape, row.calls, row.moved_bytes) for row in again.kernels)
    )


def test_timing_changes_no_number(built_bundles: BuiltBundles) -> None:
    bundle = open_bundle(built_bundles.bundle())
    plain, timed = (LLVMRunner(bundle, threads=1) for _ in range(2))
    plain.extend(TOKENS)
    timed.profile(TOKENS)
    assert np.array_equal(plain.extend([9]), timed.extend([9]))
    assert np.array_equal(plain.extend([2]), timed.extend([2]))
