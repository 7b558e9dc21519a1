"""Runs a bundle with TVM's runtime alone: weights mapped, caches updated in place.

Neither torch nor the TVM compiler is imported here; see `compiler.relax.lean`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.bundle import Bundle, ModuleEntry
from compiler.contracts.errors import MachineLacks, TargetError
from compiler.contracts.profile import CallProfile
from compiler.contracts.program import PHASES, Phase
from compiler.contracts.runner import WindowedRunner
from compiler.contracts.slots import slot_name
from compiler.contracts.taps import Observer
from compiler.contracts.tensor_parallel import Collectives
from compiler.relax.collectives import serve_collectives, taking_part
from compiler.relax.lean import import_tvm_ffi
from compiler.relax.parameters import aligned_copy, aligned_zeros, map_parameters
from targets.llvm.features import CpuFeatures, detect, missing, permit_tiles
from targets.llvm.observing import Instrument
from targets.llvm.profiling import TimedGraph, profile_of
from targets.llvm.tensor_memory import cache_name, cached_rows

if TYPE_CHECKING:
    import tvm_ffi

_Graph = Callable[..., Sequence["tvm_ffi.Tensor"]]

_CPU_DEVICE, _POOLED_ALLOCATOR = 1, 2


class LLVMRunner(WindowedRunner):
    """One rank of a bundle, a KV cache for each prompt that it serves at once.

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
        self.has_every_row = entries[0].phase == "prefill" and entries[0].logits_of == "all"
        self._entries: dict[Phase, ModuleEntry] = {entry.phase: entry for entry in entries}
        self._libraries = {entry.phase: self._load(bundle, entry) for entry in entries}
        self._functions: Mapping[Phase, _Graph] = {
            entry.phase: self._machine(entry.phase)["main"] for entry in entries
        }
        tensors = {
            file: {name: self._tensor(*value) for name, value in map_parameters(file).items()}
            for file in sorted({bundle.params_file(entry) for entry in entries})
        }
        self._params = {
            entry.phase: [tensors[bundle.params_file(entry)][entry.stored[n]] for n in entry.params]
            for entry in entries
        }
        self.slots = _slots(entries[-1])
        self._caches = self._new_caches(entries[-1])
        self.layers = sum(name.endswith(".key") for name in self._caches)
        self._observed: dict[Phase, tuple[Instrument, tvm_ffi.Function]] = {}
        self._timed: dict[Phase, TimedGraph] = {}

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of one graph; the caches change in place."""
        return self._rows(phase, tokens, past=past, valid=valid)[-1].copy()

    def step_rows(self, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of the prefill graph; the rows are its output itself."""
        return self._rows("prefill", tokens, past=past, valid=valid)

    def step_slots(self, tokens: np.ndarray, *, past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """One call of the decode graph; the caches change in place."""
        arguments = self._arguments("decode", tokens, past=past, valid=valid)
        if "decode" not in self._observed:
            return self._logits(self._functions["decode"](*arguments), self.slots).copy()
        if valid.nonzero()[0].tolist() != [0]:
            raise _one_prompt()
        instrument, function = self._observed["decode"]
        outputs = instrument.run(function, arguments, past=int(past[0]), valid=1)
        rows = self._logits(outputs, self.slots).copy()
        instrument.see_logits(rows[0])
        return rows

    def _rows(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """The logits that a graph gives: every token's, or the wanted one's alone."""
        lengths = np.array([past], np.int64), np.array([valid], np.int64)
        arguments = self._arguments(phase, tokens, past=lengths[0], valid=lengths[1])
        if self._collectives is not None:
            with taking_part(self._collectives):
                return self._logits(self._functions[phase](*arguments), valid)
        if phase not in self._observed:
            return self._logits(self._functions[phase](*arguments), valid)
        if self.slot:
            raise _one_prompt()
        instrument, function = self._observed[phase]
        outputs = instrument.run(function, arguments, past=past, valid=valid)
        rows = self._logits(outputs, valid).copy()
        instrument.see_logits(rows[-1])
        return rows

    def _arguments(
        self, phase: Phase, tokens: np.ndarray, *, past: np.ndarray, valid: np.ndarray
    ) -> "list[tvm_ffi.Tensor]":
        """Of one call: a graph of several prompts names all caches, another takes the slot's."""
        given = {"input_ids": tokens, "past_length": past, "valid_length": valid}
        entry = self._entries[phase]
        slot = self.slot if _slots(entry) == 1 else 0
        caches = [
            None if spec.name in given else self._caches[slot_name(spec.name, slot)]
            for spec in entry.inputs
        ]
        arguments = [
            self._tensor(aligned_copy(given[spec.name])) if cache is None else cache
            for spec, cache in zip(entry.inputs, caches, strict=True)
        ]
        return [*arguments, *self._params[phase]]

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

    def profile(self, tokens: Sequence[int]) -> CallProfile:
        """Run the same kernels in machines of their own, each under a clock."""
        if self._collectives is not None:
            return super().profile(tokens)
        if self.slots > 1:
            raise TargetError(
                "kernels of several prompts at once are not timed",
                hint="measure without --profile",
                code="no-profile",
            )
        assert not self._observed, "a call is watched or timed, not both"
        self._timed = self._timed or {
            phase: TimedGraph(
                self._machine(phase), entry, params=self._params[phase], caches=self._caches
            )
            for phase, entry in self._entries.items()
        }
        plain = self._functions
        try:
            self._functions = {**plain, **self._timed}
            self.extend(tokens)
        finally:
            self._functions = plain
        return profile_of(list(self._timed.values()))

    def close(self) -> None:
        """Leave the other ranks."""
        if self._collectives is not None:
            self._collectives.close()

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As attention reads them."""
        assert 0 <= start <= stop <= self.context, f"rows [{start}, {stop}) of {self.context}"
        keys, values = (
            cached_rows(
                self._caches[slot_name(name, self.slot)],
                start,
                stop,
                scales=self._caches.get(slot_name(f"{name}_scale", self.slot)),
            ).astype(np.float32)
            for name in (cache_name(layer, kind) for kind in ("key", "value"))
        )
        return keys, values

    def _logits(self, outputs: Sequence["tvm_ffi.Tensor"], valid: int) -> np.ndarray:
        # Where the slice was left out, padding has rows, too.
        return np.from_dlpack(outputs[0]).reshape(-1, self.vocabulary)[:valid]

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
            is_bfloat16 = spec.dtype == "bfloat16"
            zeros = aligned_zeros(shape, np.dtype(np.uint16 if is_bfloat16 else spec.dtype))
            caches[spec.name] = self._tensor(zeros, "bfloat16" if is_bfloat16 else None)
        return caches


def _slots(entry: ModuleEntry) -> int:
    """Prompts that a graph takes at once: decode has a column of `input_ids` for each."""
    ids = next(spec for spec in entry.inputs if spec.name == "input_ids")
    return int(ids.shape[-1]) // entry.tokens


def _one_prompt() -> TargetError:
    return TargetError("taps are shown of slot 0 alone", hint="watch one prompt, in slot 0")


def _check_features(bundle: Bundle, entry: ModuleEntry) -> None:
    flags = entry.target["features"]
    assert isinstance(flags, list), "the manifest's features are a list"
    features = CpuFeatures(str(entry.target["arch"]), tuple(flags))
    lacking = missing(features, detect())
    if lacking:
        raise MachineLacks(
            f"the bundle was built for a CPU with {', '.join(lacking)}, which this one lacks",
            where=str(bundle.path),
            hint="build it here, or with backend.compile.features",
        )
    permit_tiles(features)


def _set_threads(threads: int | None) -> None:
    """TVM's pool counts physical cores and reads this variable when its first kernel runs."""
    if threads is None:
        os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    else:
        os.environ["TVM_NUM_THREADS"] = str(threads)
