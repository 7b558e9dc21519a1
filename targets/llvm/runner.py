"""Runs a bundle with TVM's runtime alone: weights mapped, caches updated in place.

Neither torch nor the TVM compiler is imported here; see `compiler.relax.lean`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.bundle import PARAMS_FOLDER, Bundle, ModuleEntry
from compiler.contracts.errors import BundleError, MachineLacks
from compiler.contracts.program import PHASES, Phase
from compiler.contracts.taps import Observer
from compiler.contracts.target_base import WindowedRunner
from compiler.contracts.tensor_parallel import Collectives
from compiler.relax.collectives import serve_collectives, taking_part
from compiler.relax.lean import import_tvm_ffi
from targets.llvm.features import CpuFeatures, detect, missing
from targets.llvm.observing import Instrument, cache_name, cached_rows

if TYPE_CHECKING:
    import tvm_ffi

# Kernels load whole vectors from the start of a tensor.
_ALIGNMENT = 64
_CPU_DEVICE, _POOLED_ALLOCATOR = 1, 2
# numpy lacks bfloat16: such a tensor is mapped as 16-bit integers and seen as bfloat16.
_MAPPED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8}


class LLVMRunner(WindowedRunner):
    """One rank of a bundle, one KV cache.

    Args:
        bundle: What to run.
        threads: To compute with; None leaves it to the runtime.
        rank: Which of the bundle's.
        collectives: Its line to the other ranks; None where there are none.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        rank: int = 0,
        collectives: Collectives | None = None,
    ) -> None:
        entries = [
            entry for phase in PHASES if (entry := bundle.module(phase, rank=rank)) is not None
        ]
        for entry in entries:
            _check_features(bundle, entry)
        _set_threads(threads)
        self._ffi = import_tvm_ffi()
        self._collectives = collectives
        if collectives is not None:
            serve_collectives()
        manifest = bundle.manifest
        self.window, self.context = manifest.window, manifest.context
        self.vocabulary = manifest.vocabulary
        self.takes_padding = all(entry.logits_of != "last" for entry in entries)
        self.has_decode = any(entry.phase == "decode" for entry in entries)
        self._entries: dict[Phase, ModuleEntry] = {entry.phase: entry for entry in entries}
        self._libraries = {entry.phase: self._load(bundle, entry) for entry in entries}
        self._functions = {entry.phase: self._machine(entry.phase)["main"] for entry in entries}
        mapped = map_parameters(bundle.path / PARAMS_FOLDER / f"rank{rank}.safetensors")
        tensors = {name: self._tensor(*value) for name, value in mapped.items()}
        self._params = {
            entry.phase: [tensors[entry.stored[name]] for name in entry.params] for entry in entries
        }
        self._caches = self._new_caches(entries[0])
        self.layers = sum(name.endswith(".key") for name in self._caches)
        self._observed: dict[Phase, tuple[Instrument, tvm_ffi.Function]] = {}

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of one graph; the caches change in place."""
        given = {
            "input_ids": tokens,
            "past_length": np.array([past], np.int64),
            "valid_length": np.array([valid], np.int64),
        }
        arguments = [
            self._caches[spec.name]
            if spec.name in self._caches
            else self._tensor(_aligned_copy(given[spec.name]))
            for spec in self._entries[phase].inputs
        ]
        arguments += self._params[phase]
        if self._collectives is not None:
            with taking_part(self._collectives):
                return self._logits(self._functions[phase](*arguments), valid)
        if phase not in self._observed:
            return self._logits(self._functions[phase](*arguments), valid)
        instrument, function = self._observed[phase]
        logits = self._logits(instrument.run(function, arguments, past=past, valid=valid), valid)
        instrument.see_logits(logits)
        return logits

    def observe(self, observer: Observer | None) -> None:
        """Watch the same kernels in machines of their own: TVM takes no instrument back."""
        if self._collectives is not None:
            super().observe(observer)
        self._observed = {}
        if observer is None:
            return
        for phase, entry in self._entries.items():
            instrument = Instrument(
                observer,
                entry,
                params=self._params[phase],
                caches=self._caches,
                layers=self.layers,
            )
            machine = self._machine(phase)
            machine["set_instrument"](self._ffi.convert(instrument))
            self._observed[phase] = instrument, machine["main"]

    def close(self) -> None:
        """Leave the other ranks."""
        if self._collectives is not None:
            self._collectives.close()

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As the caches hold them."""
        assert 0 <= start <= stop <= self.context, f"rows [{start}, {stop}) of {self.context}"
        keys, values = (
            cached_rows(self._caches[cache_name(layer, kind)], start, stop).astype(np.float32)
            for kind in ("key", "value")
        )
        return keys, values

    def _logits(self, outputs: Sequence["tvm_ffi.Tensor"], valid: int) -> np.ndarray:
        logits = np.from_dlpack(outputs[0]).reshape(-1, self.vocabulary)
        # Every token's, where the slice was left out; else the wanted one's alone.
        return logits[valid - 1 if len(logits) > 1 else 0].copy()

    def _load(self, bundle: Bundle, entry: ModuleEntry) -> "tvm_ffi.Module":
        return self._ffi.load_module(str(bundle.path / entry.folder / str(entry.target["library"])))

    def _machine(self, phase: Phase) -> "tvm_ffi.Module":
        """A virtual machine of its own over the graph's kernels."""
        machine = self._libraries[phase]["vm_load_executable"]()
        machine["vm_initialization"](_CPU_DEVICE, 0, _POOLED_ALLOCATOR)
        return machine

    def _tensor(self, array: np.ndarray, dtype: str | None = None) -> "tvm_ffi.Tensor":
        tensor = self._ffi.from_dlpack(array)
        if dtype is None:
            return tensor
        view = self._ffi.get_global_func("runtime.TVMTensorCreateView")
        return view(tensor, self._ffi.Shape(array.shape), self._ffi.dtype(dtype), 0)

    def _new_caches(self, entry: ModuleEntry) -> dict[str, "tvm_ffi.Tensor"]:
        caches = {}
        for spec in entry.inputs:
            if spec.name not in entry.aliases.values():
                continue
            shape = tuple(int(axis) for axis in spec.shape)
            caches[spec.name] = self._tensor(_aligned_zeros(shape, np.dtype(spec.dtype)))
        return caches


def map_parameters(file: Path) -> Mapping[str, tuple[np.ndarray, str | None]]:
    """Every tensor of a safetensors file as a mapped array, and the dtype it stands for."""
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    data = np.memmap(file, dtype=np.uint8, mode="c", offset=0)
    start = 8 + header_bytes
    found: dict[str, tuple[np.ndarray, str | None]] = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _MAPPED:
            continue
        begin, end = entry["data_offsets"]
        if (start + begin) % _ALIGNMENT:
            raise BundleError(
                f"tensor '{name}' does not start at {_ALIGNMENT} bytes", where=str(file)
            )
        array = data[start + begin : start + end].view(_MAPPED[entry["dtype"]])
        dtype = "bfloat16" if entry["dtype"] == "BF16" else None
        found[name] = (array.reshape(entry["shape"]), dtype)
    return found


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    buffer = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % _ALIGNMENT
    return buffer[offset : offset + nbytes].view(dtype).reshape(shape)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    copied = _aligned_zeros(array.shape, array.dtype)
    copied[...] = array
    return copied


def _check_features(bundle: Bundle, entry: ModuleEntry) -> None:
    flags = entry.target["features"]
    assert isinstance(flags, list), "the manifest's features are a list"
    lacking = missing(CpuFeatures(str(entry.target["arch"]), tuple(flags)), detect())
    if lacking:
        raise MachineLacks(
            f"the bundle was built for a CPU with {', '.join(lacking)}, which this one lacks",
            where=str(bundle.path),
            hint="build it here, or with backend.compile.features",
        )


def _set_threads(threads: int | None) -> None:
    """TVM's pool counts physical cores and reads this variable when its first kernel runs."""
    if threads is None:
        os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    else:
        os.environ["TVM_NUM_THREADS"] = str(threads)
