"""Compile one kernel for a level of features and run it on numpy arrays."""

import functools
import os
from collections.abc import Callable, Sequence

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import ml_dtypes
import numpy as np
import pytest
import tvm

from targets.llvm.features import (
    CpuFeatures,
    detect,
    from_names,
    llvm_target,
    missing,
    permit_tiles,
)

Execute = Callable[[tvm.tirx.PrimFunc, Sequence[np.ndarray]], list[np.ndarray]]

_LEVELS = {"avx2": ("avx2", "f16c", "fma"), "sse2": ()}


@pytest.fixture(params=["detected", *_LEVELS])
def features(request: pytest.FixtureRequest) -> CpuFeatures:
    """What this machine has, and lower levels that it can run too."""
    present = detect()
    permit_tiles(present)
    if request.param == "detected":
        return present
    level = from_names(_LEVELS[request.param])
    lacking = missing(level, present)
    if lacking:
        pytest.skip(f"this machine lacks {', '.join(lacking)}")
    return level


@pytest.fixture
def execute(features: CpuFeatures) -> Execute:
    """Run a PrimFunc on copies of the arrays; what each holds afterwards."""
    return _executor(features)


@pytest.fixture
def execute_tiles() -> Execute:
    """The same for kernels of AMX, which this machine has."""
    present = detect()
    permit_tiles(present)
    return _executor(present)


def _executor(features: CpuFeatures) -> Execute:
    target = tvm.target.Target(llvm_target(features, threads=2))

    @functools.cache
    def kernel(func: tvm.tirx.PrimFunc) -> Callable[..., None]:
        return tvm.compile(tvm.IRModule({"main": func}), target=target)["main"]

    def run(func: tvm.tirx.PrimFunc, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = [_tensor(array) for array in arrays]
        kernel(func)(*tensors)
        return [_array(tensor) for tensor in tensors]

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20)


def _tensor(array: np.ndarray) -> tvm.runtime.Tensor:
    if array.dtype != ml_dtypes.bfloat16:
        return tvm.runtime.tensor(array)
    return tvm.runtime.tensor(array.view(np.uint16))._create_view(array.shape, "bfloat16")


def _array(tensor: tvm.runtime.Tensor) -> np.ndarray:
    if tensor.dtype != "bfloat16":
        return tensor.numpy()
    return tensor._create_view(tensor.shape, "uint16").numpy().view(ml_dtypes.bfloat16)
