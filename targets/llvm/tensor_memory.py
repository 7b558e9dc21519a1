"""A running bundle's tensors as numpy arrays, in their own memory."""

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from compiler.contracts.errors import TargetError
from compiler.relax.lean import import_tvm_ffi

if TYPE_CHECKING:
    import tvm_ffi

_SHOWN = ("float32", "float16", "bfloat16", "int8")


def memory_of(tensor: "tvm_ffi.Tensor") -> np.ndarray:
    """The tensor's own memory as an array that can be written.

    Raises:
        TargetError: Its dtype is no float of 32 or 16 bits, nor int8.
    """
    dtype = str(tensor.dtype)
    if dtype not in _SHOWN:
        raise TargetError(f"a value of dtype {dtype} cannot be shown as float32")
    if dtype != "bfloat16":
        return np.from_dlpack(tensor)
    # numpy's from_dlpack lacks bfloat16.
    ffi = import_tvm_ffi()
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    as_integers = view(tensor, ffi.Shape(tensor.shape), ffi.dtype("uint16"), 0)
    return np.from_dlpack(as_integers).view(ml_dtypes.bfloat16)


def cached_rows(
    cache: "tvm_ffi.Tensor", start: int, stop: int, *, scales: "tvm_ffi.Tensor | None" = None
) -> np.ndarray:
    """Positions [start, stop) of a cache [context, heads, head_dim], [stop - start, width].

    In the cache's own memory, but for int8, whose rows are made anew with `scales`.
    """
    memory = memory_of(cache)
    if scales is None:
        return memory.reshape(len(memory), -1)[start:stop]
    wide = memory[start:stop].astype(np.float32) * memory_of(scales)[start:stop]
    return wide.reshape(stop - start, -1)


def cache_name(layer: int, kind: str) -> str:
    """The graph's input that is a layer's `key` or `value` cache."""
    return f"past_key_values.{layer}.{kind}"
