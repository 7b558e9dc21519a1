"""What a tile program may not do, and what a driver shows of one that may."""

from collections.abc import Sequence

import numpy as np
import pytest
from tile_runs import PROFILE, program_of, random_arrays, run_kernel, run_text

from compiler.contracts.errors import ConfigError, TargetError
from targets.vacc.emulator import EmulatedPartition, Emulator
from targets.vacc.faults import Fault, FaultyPartition, emulator, read_faults
from targets.vacc.kernels.cache import cache_update
from targets.vacc.kernels.rows import binary
from targets.vacc.tile_text import tile_text

KERNEL = binary(8, 16, op="add", composite="add", profile=PROFILE, name="add_0")
TEXT = tile_text(program_of(KERNEL, onchip_bytes=4096))
ARRAYS = random_arrays(KERNEL)
TOTAL = ARRAYS["a"] + ARRAYS["b"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("onchip 4096", "onchip 1000", "its buffers take 1024 bytes, the chip holds 1000"),
        ("load xa = a", "load xa = c", "there is no c"),
        ("add ys =", "subtract ys =", "there is no subtract"),
        ("buffer f16[8,16] xa", "buffer f32[8,16] xa", "dtypes differ"),
        ("buffer f16[8,16] xa", "buffer f16[4,16] xa", "holds 64 entries, 128 were put in"),
        ("load xa = a[m:+m.n", "load xa = a[m+1:+m.n", "1:9 of a is outside its 8"),
        ("load xa = a[m:+m.n, 0:+16]", "load xa = a[m:+m.n]", "a has 2 axes, its region 1"),
        ("store y[m:+m.n, 0:+16]", "store y[m:+m.n, 0:+8]", "is stored to (8, 8)"),
        ("    load xb = b[m:+m.n, 0:+16]\n", "", "xb is read before anything was loaded"),
        ("run add_0", "run add_1", "there is no add_1"),
    ],
)
def test_what_a_program_may_not_do_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(TargetError) as caught:
        run_text(TEXT.replace(old, new), ARRAYS)
    assert message in str(caught.value)
    assert "add_" in str(caught.value) or "module" in str(caught.value)


def test_an_argument_of_another_type_is_refused() -> None:
    with pytest.raises(TargetError, match=r"a is f16\[8,16\], was given float32\[8, 16\]"):
        run_text(TEXT, {**ARRAYS, "a": ARRAYS["a"].astype(np.float32)})


def test_a_run_is_shown_and_its_result_replaced() -> None:
    part = Emulator().load(Emulator().compile(TEXT), where="here")
    seen: list[tuple[str, str]] = []

    def watch(module: str, composite: str, results: Sequence[np.ndarray]) -> list[np.ndarray]:
        seen.append((module, composite))
        (values,) = results
        np.testing.assert_array_equal(values, TOTAL)
        return [np.ones_like(values)]

    (found,) = part.call([ARRAYS["a"], ARRAYS["b"]], watch)
    assert seen == [("module", "add")]
    assert (found == 1).all()
    assert isinstance(part, EmulatedPartition)
    assert part.runs == {"module": 1}


def faulty(kind: str, text: str = TEXT) -> FaultyPartition:
    return FaultyPartition(text, faults=(Fault(kind, "mod*"),))


def test_each_fault_changes_what_it_says() -> None:
    given = [ARRAYS["a"], ARRAYS["b"]]
    (missing,) = faulty("missing").call(given)
    assert not missing.any()
    (saturated,) = faulty("saturate").call(given)
    limit = np.abs(TOTAL.astype(np.float32)).max() / 4
    np.testing.assert_allclose(np.abs(saturated).max(), limit, rtol=1e-3)
    (turned,) = faulty("wrong-layout").call(given)
    wrong = ARRAYS["a"].reshape(16, 8).T + ARRAYS["b"]
    np.testing.assert_array_equal(turned, wrong)
    (elsewhere,) = FaultyPartition(TEXT, faults=(Fault("missing", "other"),)).call(given)
    np.testing.assert_array_equal(elsewhere, TOTAL)


def test_a_late_write_comes_with_the_next_call() -> None:
    kernel = cache_update(
        1, 2, width=16, context=4, is_by_head=False, profile=PROFILE, name="cache_update_0"
    )
    text = tile_text(program_of(kernel, onchip_bytes=4096, states=("cache",)))
    part = faulty("late-write", text)
    cache = np.zeros((4, 2, 16), np.float16)
    rows = random_arrays(kernel)["rows"]
    for past in range(2):
        part.call([rows * (past + 1), np.array([past]), np.array([1]), cache])
        np.testing.assert_array_equal(cache[past], 0)
    np.testing.assert_array_equal(cache[0], rows[0])


def test_faults_are_spelled_kind_at_module() -> None:
    assert read_faults("missing@a.*,saturate@b") == (
        Fault("missing", "a.*"),
        Fault("saturate", "b"),
    )
    assert emulator("").load(TEXT.encode(), where="x").call([ARRAYS["a"], ARRAYS["b"]])
    for text in ("missing", "lost@a", "missing@"):
        with pytest.raises(ConfigError, match="is no fault of the emulator"):
            read_faults(text)


def test_equal_runs_are_equal_to_the_bit() -> None:
    first, second = (run_kernel(KERNEL, ARRAYS) for _ in range(2))
    assert first.tobytes() == second.tobytes()
