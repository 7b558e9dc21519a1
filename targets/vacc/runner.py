"""Runs a bundle: TVM's runtime executes the host's part, a driver the partitions.

The process loads neither torch nor TVM's compiler; see `compiler.relax.lean`. One rank runs here:
ranks open the same bundle with their own number, and meet in lines of their partitions.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.bundle import Bundle, ModuleEntry
from compiler.contracts.errors import BundleError, MachineLacks
from compiler.contracts.program import Phase
from compiler.contracts.runner import WindowedRunner
from compiler.contracts.taps import Observer
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.observing import RankObserver
from compiler.relax.lean import import_tvm_ffi
from compiler.relax.parameters import aligned_copy, map_parameters
from compiler.relax.raised import Raised
from targets.vacc.driver import LoadedPartition, VaccDriver, Watch
from targets.vacc.drivers import load_driver
from targets.vacc.observing import TapWatch

if TYPE_CHECKING:
    import tvm_ffi

_CPU_DEVICE, _POOLED_ALLOCATOR = 1, 2
# A virtual machine looks partitions up by their global names when it is made.
_NAMES = threading.Lock()


@dataclass(frozen=True)
class _Part:
    """A loaded partition, and the dtypes that the host expects of its results."""

    name: str
    loaded: LoadedPartition
    results: tuple[str, ...]


class VaccRunner(WindowedRunner):
    """One bundle, one rank, one KV cache.

    Args:
        bundle: What was built.
        rank: Whose modules and weights.
        driver: What runs the partitions; by default what the environment names.
        collectives: Its line to the other ranks; None where there are none.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        rank: int = 0,
        driver: VaccDriver | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        entries = [
            e for p in ("prefill", "decode") if (e := bundle.module(p, rank=rank)) is not None
        ]
        self._driver = driver or load_driver()
        missing = self._driver.probe()
        if missing:
            raise MachineLacks(
                f"driver '{self._driver.name}' cannot run here: {'; '.join(missing)}",
                where=str(bundle.path),
            )
        self._ffi = import_tvm_ffi()
        manifest = bundle.manifest
        self.window, self.context = manifest.window, manifest.context
        self.vocabulary = manifest.vocabulary
        self.takes_padding = all(entry.logits_of != "last" for entry in entries)
        self.has_decode = any(entry.phase == "decode" for entry in entries)
        self._entries: dict[Phase, ModuleEntry] = {entry.phase: entry for entry in entries}
        self._parts = {e.phase: _parts(bundle, e, self._driver) for e in entries}
        self._collectives = collectives
        if collectives is not None:
            for part in (one for parts in self._parts.values() for one in parts):
                part.loaded.join(collectives)
        self._functions = {e.phase: self._load(bundle, e) for e in entries}
        tensors = {
            file: {
                n: self._ffi.from_dlpack(value) for n, (value, _) in map_parameters(file).items()
            }
            for file in sorted({bundle.params_file(e) for e in entries})
        }
        self._params = {
            e.phase: [tensors[bundle.params_file(e)][e.stored[n]] for n in e.params]
            for e in entries
        }
        self._caches = _new_caches(entries[0])
        self._cache_tensors = {n: self._ffi.from_dlpack(a) for n, a in self._caches.items()}
        self.layers = sum(name.endswith(".key") for name in self._caches)
        self._observer: Observer | None = None
        self._watch: TapWatch | None = None
        self._raised = Raised()

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of one graph; the caches change in place."""
        entry = self._entries[phase]
        given = {
            "input_ids": tokens,
            "past_length": np.array([past], np.int64),
            "valid_length": np.array([valid], np.int64),
        }
        arguments = [
            self._cache_tensors[spec.name]
            if spec.name in self._cache_tensors
            else self._ffi.from_dlpack(aligned_copy(given[spec.name]))
            for spec in entry.inputs
        ]
        if self._observer is not None:
            self._watch = TapWatch(
                self._observer,
                tokens=entry.tokens,
                past=past,
                valid=valid,
                has_ranks=self._collectives is not None,
            )
        outputs = self._run(phase, [*arguments, *self._params[phase]])
        rows = np.from_dlpack(outputs[0]).reshape(-1, self.vocabulary)
        # Every token's, where the slice was left out; else the wanted one's alone.
        logits = rows[valid - 1 if len(rows) > 1 else 0].copy()
        if self._watch is not None:
            self._watch.see_logits(logits)
        self._watch = None
        return logits

    def rewind(self, length: int) -> None:
        """Forget positions, and clear their rows: a device that reads one too early shows it."""
        super().rewind(length)
        for cache in self._caches.values():
            cache[length:] = 0

    def observe(self, observer: Observer | None) -> None:
        """Show what the driver leaves in memory; it runs what it would run unobserved.

        Raises:
            TargetError: A process that is one rank of several sees a share of each tap alone.
        """
        is_alone = self._collectives is None
        if not is_alone and observer is not None and not isinstance(observer, RankObserver):
            super().observe(observer)
        self._observer = observer

    def close(self) -> None:
        """Leave the other ranks."""
        if self._collectives is not None:
            self._collectives.close()

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As the caches hold them."""
        assert 0 <= start <= stop <= self.context, f"rows [{start}, {stop}) of {self.context}"
        keys, values = (
            self._cached(f"past_key_values.{layer}.{kind}", start, stop)
            for kind in ("key", "value")
        )
        return keys, values

    def _cached(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = self._caches[name][start:stop].astype(np.float32)
        scales = self._caches.get(f"{name}_scale")
        wide = rows if scales is None else rows * scales[start:stop]
        return wide.reshape(stop - start, -1)

    def _run(self, phase: Phase, arguments: "list[tvm_ffi.Tensor]") -> "Sequence[tvm_ffi.Tensor]":
        with self._raised.restored():
            return self._functions[phase](*arguments)

    def _load(self, bundle: Bundle, entry: ModuleEntry) -> "tvm_ffi.Function":
        library = bundle.path / entry.folder / str(entry.target["library"])
        executable = self._ffi.load_module(str(library))
        with _NAMES:
            for part in self._parts[entry.phase]:
                self._ffi.register_global_func(part.name, self._packed(part), override=True)
            machine = executable["vm_load_executable"]()
            machine["vm_initialization"](_CPU_DEVICE, 0, _POOLED_ALLOCATOR)
        return machine["main"]

    def _packed(self, part: _Part) -> "Callable[..., object]":
        """What the host's part calls: tensors in, tensors out, states as they were given."""

        def call(*tensors: "tvm_ffi.Tensor") -> object:
            with self._raised.kept():
                arrays = [np.from_dlpack(tensor) for tensor in tensors]
                results = _call(part, arrays, self._watch)
                places = {id(array): tensor for array, tensor in zip(arrays, tensors, strict=True)}
                given = [
                    places.get(id(one)) or self._ffi.from_dlpack(aligned_copy(one))
                    for one in results
                ]
            return given[0] if len(given) == 1 else self._ffi.convert(given)

        return call


def _call(part: _Part, arrays: list[np.ndarray], watch: Watch | None) -> list[np.ndarray]:
    """Run a partition; what the host has as float32 is float16 on the device, and back."""
    declared = part.loaded.argument_dtypes
    narrowed = [
        array if array.dtype == dtype else array.astype(dtype)
        for array, dtype in zip(arrays, declared, strict=True)
    ]
    found = part.loaded.call(narrowed, watch)
    return [
        result if result.dtype == np.dtype(dtype) else result.astype(dtype)
        for result, dtype in zip(found, part.results, strict=True)
    ]


def _parts(bundle: Bundle, entry: ModuleEntry, driver: VaccDriver) -> tuple[_Part, ...]:
    partitions = entry.target["partitions"]
    assert isinstance(partitions, list), "the manifest's partitions are a list"
    return tuple(_part(bundle.path / entry.folder, facts, driver) for facts in partitions)


def _part(folder: Path, facts: Mapping[str, object], driver: VaccDriver) -> _Part:
    name, results = str(facts["name"]), facts["results"]
    assert isinstance(results, list), "the manifest's results are a list"
    compiled, tiles = folder / f"{name}.bin", folder / f"{name}.tiles"
    file = compiled if compiled.is_file() else tiles
    try:
        content = file.read_bytes()
    except OSError as e:
        raise BundleError(f"the partition cannot be read: {e}", where=str(file)) from e
    loaded = driver.load(content, where=str(file))
    return _Part(name, loaded, tuple(map(str, results)))


def _new_caches(entry: ModuleEntry) -> dict[str, np.ndarray]:
    dtypes = entry.target["caches"]
    assert isinstance(dtypes, dict), "the manifest's caches have names"
    return {
        spec.name: aligned_copy(np.zeros([int(axis) for axis in spec.shape], dtypes[spec.name]))
        for spec in entry.inputs
        if spec.name in dtypes
    }
