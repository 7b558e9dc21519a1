"""Relax modules compiled and run on numpy arrays."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from compiler.contracts.pass_base import Arrays
from compiler.contracts.program import Program
from compiler.contracts.weight_values import value
from compiler.contracts.weights import CheckpointRef


def arguments(program: Program, inputs: Arrays, checkpoint: CheckpointRef) -> list[np.ndarray]:
    """Activations and parameters in the order of the skeleton's inputs."""
    return [
        value(program.weights[tensor.name], checkpoint.rows)
        if tensor.name in program.weights
        else inputs[tensor.name]
        for tensor in program.graph.inputs
    ]


def run_main(executable: tvm.runtime.Executable, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`main`'s results, in order."""
    assert isinstance(executable, relax.VMExecutable)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    results = machine["main"](*(as_tensor(array) for array in arrays))
    found = [results] if isinstance(results, tvm.runtime.Tensor) else list(results)
    return [_array(tensor) for tensor in found]


def _array(tensor: tvm.runtime.Tensor) -> np.ndarray:
    if tensor.dtype != "bfloat16":
        return tensor.numpy()
    return tensor._create_view(tensor.shape, "uint16").numpy().view(ml_dtypes.bfloat16)


def as_tensor(array: np.ndarray) -> tvm.runtime.Tensor:
    """On the heap, aligned as kernels ask."""
    # Kernels load whole vectors: TVM's own allocation is aligned.
    if array.dtype != ml_dtypes.bfloat16:
        return tvm.runtime.tensor(np.ascontiguousarray(array))
    stored = tvm.runtime.tensor(np.ascontiguousarray(array).view(np.uint16))
    return stored._create_view(array.shape, "bfloat16")
