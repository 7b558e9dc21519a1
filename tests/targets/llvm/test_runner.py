"""Running a bundle on TVM's runtime: mapping, alignment, threads, features, steps."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import pytest
from built_bundles import TINY, BuiltBundles, TinyModel
from checkpoint_factory import write_safetensors
from compiler_process import environment

from compiler.contracts.errors import BundleError, MachineLacks, RunError, TargetError
from compiler.contracts.target_base import TargetOptions
from compiler.contracts.weights import CheckpointRef
from compiler.params_file import params_layout, write_params
from compiler.relax.parameters import map_parameters
from compiler.stages.open_bundle import open_bundle
from targets.llvm import runner as runner_module
from targets.llvm.features import CpuFeatures
from targets.llvm.runner import LLVMRunner
from targets.llvm.target import LLVMTarget

BF16 = TinyModel("bf16", stored="bfloat16", dtype="bf16", tied=True)


@pytest.fixture
def runner(built_bundles: BuiltBundles) -> Iterator[LLVMRunner]:
    opened = LLVMTarget().open(open_bundle(built_bundles.bundle()))
    assert isinstance(opened, LLVMRunner)
    yield opened
    opened.close()


def draw(length: int) -> list[int]:
    return np.random.default_rng(5).integers(0, TINY.vocabulary, length).tolist()


def test_a_file_is_mapped_tensor_by_tensor(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(16, dtype=np.float32).reshape(4, 4),
        "b": np.arange(32, dtype=np.float32).astype(ml_dtypes.bfloat16),
        "c": np.arange(32, dtype=np.float16),
    }
    file = aligned_safetensors(tmp_path / "rank0.safetensors", arrays)
    found = map_parameters(file)
    assert list(found) == ["a", "b", "c"]
    assert [dtype for _, dtype in found.values()] == [None, "bfloat16", None]
    assert np.array_equal(found["a"][0], arrays["a"])
    assert np.array_equal(found["b"][0], arrays["b"].view(np.uint16))
    assert np.array_equal(found["c"][0], arrays["c"])
    assert all(isinstance(array.base, np.memmap) for array, _ in found.values())
    assert all(array.ctypes.data % 64 == 0 for array, _ in found.values())


def aligned_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Data begins at a multiple of 64; the arrays' sizes are multiples of it."""
    write_safetensors(path, arrays)
    data = path.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    padded = header + b" " * (-(8 + len(header)) % 64)
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + data[8 + len(header) :])
    return path


def test_a_tensor_that_is_not_aligned_is_refused(tmp_path: Path) -> None:
    arrays = {"odd": np.zeros(3, np.float32), "next": np.zeros(16, np.float32)}
    file = aligned_safetensors(tmp_path / "rank0.safetensors", arrays)
    with pytest.raises(BundleError, match="tensor 'next' does not start at 64 bytes") as caught:
        map_parameters(file)
    assert caught.value.where == str(file)


def test_what_we_write_is_aligned(tmp_path: Path) -> None:
    layout = params_layout({})
    path = tmp_path / "rank0.safetensors"
    write_params(path, layout, CheckpointRef(tmp_path, {}, {}, ""), written=lambda _: None)
    assert map_parameters(path) == {}


def test_something_else_than_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="opens bundles, not CheckpointRef"):
        LLVMTarget().open(CheckpointRef(tmp_path, {}, {}, ""))


@pytest.mark.slow
def test_every_lacking_feature_is_named(
    built_bundles: BuiltBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(built_bundles.bundle())
    flags = bundle.manifest.modules[0].target["features"]
    assert isinstance(flags, list)
    monkeypatch.setattr(runner_module, "detect", lambda: CpuFeatures("x86_64", ()))
    if not flags:
        pytest.skip("this CPU has no feature that could lack")
    with pytest.raises(MachineLacks) as caught:
        LLVMRunner(bundle)
    assert ", ".join(sorted(flags)) in caught.value.message
    monkeypatch.setattr(runner_module, "detect", lambda: CpuFeatures("aarch64", ()))
    with pytest.raises(MachineLacks, match=r"built for a CPU with .*x86_64"):
        LLVMRunner(bundle)


@pytest.mark.slow
def test_windows_and_steps_agree(runner: LLVMRunner) -> None:
    """One prompt in one call, token by token, and in two calls: the same logits."""
    tokens = draw(44)
    whole = runner.extend(tokens)
    runner.rewind(0)
    single = [runner.extend([token]) for token in tokens][-1]
    runner.rewind(0)
    runner.extend(tokens[:13])
    parts = runner.extend(tokens[13:])
    assert whole.shape == (TINY.vocabulary,)
    assert whole.dtype == np.float32
    assert np.abs(whole - single).max() < 1e-4
    assert np.abs(whole - parts).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["all", "last_valid"])
def test_reading_rows_equals_extending(
    built_bundles: BuiltBundles, kept: Literal["all", "last_valid"]
) -> None:
    """Behind a first token, so that windows do not begin at their multiples, to the last place."""
    model = TINY if kept == "last_valid" else TinyModel("no-slice", kept=kept)
    runner = LLVMTarget().open(open_bundle(built_bundles.bundle(model)))
    assert isinstance(runner, LLVMRunner)
    assert runner.has_every_row == (kept == "all")
    tokens = draw(runner.context)
    runner.extend(tokens[:1])
    wanted = [runner.extend([token]) for token in tokens[1:]]
    runner.rewind(1)
    found = list(runner.read_rows(tokens[1:]))
    assert runner.length == runner.context
    assert {(row.dtype, row.shape) for row in found} == {(np.dtype(np.float32), (128,))}
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_rewind_is_as_good_as_never_read(runner: LLVMRunner) -> None:
    tokens = draw(30)
    wanted = runner.extend(tokens)
    assert runner.length == 30
    runner.extend([7, 8, 9])
    runner.rewind(12)
    assert runner.length == 12
    assert np.abs(runner.extend(tokens[12:]) - wanted).max() < 1e-4
    with pytest.raises(AssertionError, match="rewind to 31 of 30"):
        runner.rewind(31)


@pytest.mark.slow
def test_the_last_position_is_decoded_and_prefilled(runner: LLVMRunner) -> None:
    tokens = draw(48)
    runner.extend(tokens[:47])
    decoded = runner.step("decode", np.array([tokens[47:]]), past=47, valid=1)
    window = np.zeros((1, 32), np.int64)
    window[0, 0] = tokens[47]
    prefilled = runner.step("prefill", window, past=47, valid=1)
    assert np.abs(decoded - prefilled).max() < 1e-4


@pytest.mark.slow
def test_the_logits_are_the_callers_own(runner: LLVMRunner) -> None:
    first = runner.extend([1, 2, 3])
    kept = first.copy()
    runner.extend([4])
    assert np.array_equal(first, kept)
    assert first.flags.owndata


@pytest.mark.slow
def test_equal_calls_give_equal_bits(runner: LLVMRunner) -> None:
    tokens = draw(40)
    first = runner.extend(tokens)
    runner.rewind(0)
    assert np.array_equal(runner.extend(tokens), first)


@pytest.mark.slow
@pytest.mark.parametrize("token", [-1, TINY.vocabulary])
def test_a_token_outside_the_vocabulary_is_refused(runner: LLVMRunner, token: int) -> None:
    with pytest.raises(RunError, match=f"token id {token} is outside the vocabulary of 128"):
        runner.extend([1, token])
    assert runner.length == 0


@pytest.mark.slow
def test_two_runners_have_caches_of_their_own(built_bundles: BuiltBundles) -> None:
    bundle = open_bundle(built_bundles.bundle(BF16))
    one, other = LLVMRunner(bundle), LLVMRunner(bundle)
    tokens = draw(20)
    wanted = one.extend(tokens)
    one.rewind(0)
    one.extend(tokens[:10])
    other.extend(draw(35))
    assert np.abs(one.extend(tokens[10:]) - wanted).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_start_as_many_workers_as_asked(
    built_bundles: BuiltBundles, tmp_path: Path, threads: int
) -> None:
    """TVM's pool is the process's: threads beside those that were there before the first call."""
    code = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from compiler.workflows.run import open_session\n"
        "session = open_session(Path(sys.argv[1]), threads=int(sys.argv[2]))\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "session.runner.extend([1, 2, 3])\n"
        "print(json.dumps(len(os.listdir('/proc/self/task')) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(built_bundles.bundle()), str(threads)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == threads - 1


def test_the_users_thread_variable_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    runner_module._set_threads(None)
    assert os.environ["TVM_NUM_THREADS"] == "3"
    runner_module._set_threads(1)
    assert os.environ["TVM_NUM_THREADS"] == "1"
    monkeypatch.delenv("TVM_NUM_THREADS")
    runner_module._set_threads(None)
    assert os.environ["TVM_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_it_adds_the_passes_that_its_kernels_take() -> None:
    options = TargetOptions(dtype="bf16", window=32, context=48)
    choices = {choice.name: dict(choice.options) for choice in LLVMTarget().passes(options)}
    assert choices["store-weights"] == {"dtype": "bfloat16"}
    assert {"fuse-attention", "fuse-rms-norm", "fuse-silu-mul"} <= set(choices)
