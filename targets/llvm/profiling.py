"""Times a graph's kernels through the VM's instrument: nothing is rebuilt.

The VM calls an instrument before and after every kernel and builtin (see `targets.llvm.observing`).
A watched call costs more than a plain one by what these calls take in Python; a kernel's own time
holds some microseconds of it.

A kernel's floor is of bytes: each argument that is a tensor moves once, but of a cache only the
rows that are written or lie before the last token, and of a table the rows that are taken.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.bundle import ModuleEntry
from compiler.contracts.profile import CallProfile, KernelTime
from compiler.relax.lean import import_tvm_ffi
from compiler.relax.raised import Raised

if TYPE_CHECKING:
    import tvm_ffi

_BUILTIN = "vm.builtin."
_GATHER = "take"
_CACHE_WRITE = "cache_update"


@dataclass(frozen=True)
class _Traffic:
    """One kernel call of a graph, the same in every call of the graph.

    Attributes:
        name: The kernel's, without the digits that tell equal names apart.
        shape: As `KernelTime` has it.
        fixed: Bytes that move whatever the lengths are.
        written: Bytes for each token that enters the cache.
        read: Bytes for each position that the cache holds afterwards.
    """

    name: str
    shape: str
    fixed: int = 0
    written: int = 0
    read: int = 0

    def moved(self, *, past: int, valid: int) -> int:
        """Bytes of a call at these lengths."""
        return self.fixed + valid * self.written + (past + valid) * self.read


class TimedGraph:
    """A graph in a machine of its own; call it as the graph, then `take` what was timed.

    Args:
        machine: A virtual machine that nobody else uses: an instrument is never taken back.
        entry: What the graph takes.
        params: Those of `entry`.
        caches: Every cache of the runner.
    """

    def __init__(
        self,
        machine: "tvm_ffi.Module",
        entry: ModuleEntry,
        *,
        params: "Sequence[tvm_ffi.Tensor]",
        caches: Mapping[str, "tvm_ffi.Tensor"],
    ) -> None:
        ffi = import_tvm_ffi()
        self._tensor: type[tvm_ffi.Tensor] = ffi.Tensor
        machine["set_instrument"](ffi.convert(self._see))
        self._function: Callable[..., Sequence[tvm_ffi.Tensor]] = machine["main"]
        names = [spec.name for spec in entry.inputs]
        self._past, self._valid = names.index("past_length"), names.index("valid_length")
        self._params = {param.data_ptr() for param in params}
        self._caches = {cache.data_ptr() for cache in caches.values()}
        self._is_learning = self._is_learned = False
        self._traffic: list[_Traffic] = []
        self._seconds: list[float] = []
        self._began = 0.0
        self._raised = Raised()
        self._total = 0.0
        self._kernels: dict[tuple[str, str], list[float]] = {}

    def __call__(self, *arguments: "tvm_ffi.Tensor") -> Sequence["tvm_ffi.Tensor"]:
        """Run the graph; the first time twice, and the caches are written the same both times."""
        if not self._is_learned:
            self._traffic = []
            self._run(arguments, is_learning=True)
            self._is_learned = True
        began = time.perf_counter()
        outputs = self._run(arguments, is_learning=False)
        self._total += time.perf_counter() - began
        past, valid = (_number(arguments[index]) for index in (self._past, self._valid))
        for traffic, seconds in zip(self._traffic, self._seconds, strict=True):
            row = self._kernels.setdefault((traffic.name, traffic.shape), [0, 0.0, 0])
            row[0] += 1
            row[1] += seconds
            row[2] += traffic.moved(past=past, valid=valid)
        return outputs

    def take(self) -> tuple[float, Mapping[tuple[str, str], Sequence[float]]]:
        """Seconds of all calls since it was last taken; kernel -> calls, seconds, bytes."""
        taken = self._total, self._kernels
        self._total, self._kernels = 0.0, {}
        return taken

    def _run(
        self, arguments: Sequence["tvm_ffi.Tensor"], *, is_learning: bool
    ) -> Sequence["tvm_ffi.Tensor"]:
        self._is_learning, self._seconds, self._raised = is_learning, [], Raised()
        with self._raised.restored():
            return self._function(*arguments)

    def _see(
        self, _kernel: object, name: str, is_before: bool, _result: object, *arguments: object
    ) -> None:
        """As the VM asks: the clock starts last before a kernel, and stops first after it."""
        now = time.perf_counter()
        if name.startswith(_BUILTIN):
            return
        if not is_before:
            self._seconds.append(now - self._began)
            return
        if self._is_learning:
            with self._raised.kept():
                tensors = [one for one in arguments if isinstance(one, self._tensor)]
                self._traffic.append(self._traffic_of(name.rstrip("0123456789"), tensors))
        self._began = time.perf_counter()

    def _traffic_of(self, name: str, tensors: Sequence["tvm_ffi.Tensor"]) -> _Traffic:
        """What a kernel moves; outputs come last."""
        sizes = [prod(tensor.shape) * _itemsize(tensor) for tensor in tensors]
        if not tensors:
            return _Traffic(name, "")
        is_param = [tensor.data_ptr() in self._params for tensor in tensors]
        shown = max(range(len(tensors)), key=lambda index: (is_param[index], sizes[index]))
        shape = f"{'x'.join(map(str, tensors[shown].shape))} {tensors[shown].dtype}"
        if name == _GATHER:
            taken = prod(tensors[-1].shape) * _itemsize(tensors[0])
            return _Traffic(name, shape, fixed=taken + sum(sizes[1:]))
        is_cache = [tensor.data_ptr() in self._caches for tensor in tensors]
        fixed = sum(size for size, cached in zip(sizes, is_cache, strict=True) if not cached)
        rows = sum(
            size // tensor.shape[0]
            for tensor, size, cached in zip(tensors, sizes, is_cache, strict=True)
            if cached
        )
        if _CACHE_WRITE in name:
            return _Traffic(name, shape, fixed=fixed, written=rows)
        return _Traffic(name, shape, fixed=fixed, read=rows)


def profile_of(graphs: Sequence[TimedGraph]) -> CallProfile:
    """What the graphs timed since they were last asked, as one call."""
    total, kernels = 0.0, defaultdict[tuple[str, str], list[float]](lambda: [0, 0.0, 0])
    for graph in graphs:
        seconds, found = graph.take()
        total += seconds
        for key, row in found.items():
            kernels[key] = [sum(pair) for pair in zip(kernels[key], row, strict=True)]
    rows = [
        KernelTime(name, shape, int(calls), seconds, int(moved))
        for (name, shape), (calls, seconds, moved) in kernels.items()
    ]
    return CallProfile(total, tuple(sorted(rows, key=lambda row: -row.seconds)))


def _itemsize(tensor: "tvm_ffi.Tensor") -> int:
    return (tensor.dtype.bits + 7) // 8


def _number(tensor: "tvm_ffi.Tensor") -> int:
    return int(np.from_dlpack(tensor).reshape(-1)[0])
