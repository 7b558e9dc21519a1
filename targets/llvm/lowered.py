"""A program as TVM reads it, by TVM's own operators: without this target's kernels and schedules.

    program -> every fused operator inlined -> Relax -> TVM's default CPU pipeline, in this process

That pipeline fuses nothing, so each operator computes the same whether others are watched or not.
What differs from the program by itself is the import's doing; what differs between this and the
bundle is that of this target's own lowering. Slow: nothing is scheduled.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from compiler.contracts.errors import TargetError
from compiler.contracts.program import Phase, Program
from compiler.contracts.runner import WindowedRunner
from compiler.contracts.taps import Observer, Tap
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weight_values import value
from compiler.contracts.weights import DTYPES, Weight
from compiler.numerics.program_taps import program_taps
from compiler.numerics.tap_place import TapPlace
from compiler.relax import import_tvm, relax_from_program
from targets.llvm.features import CpuFeatures, llvm_target
from targets.llvm.tensor_memory import cache_name, memory_of

if TYPE_CHECKING:
    import tvm_ffi


class LoweredRunner(WindowedRunner):
    """One model, one KV cache; parameters are inputs of both graphs, each held once.

    Args:
        model: After all passes, as a bundle is lowered from it.
        features: What is compiled for.
        threads: To compute with.
    """

    def __init__(self, model: ProgramModel, *, features: CpuFeatures, threads: int) -> None:
        programs = model.programs.programs
        prefill = programs["prefill"]
        self.window, self.context, self.layers = prefill.tokens, prefill.context, prefill.layers
        self.has_decode = "decode" in programs
        self.takes_padding = prefill.logits_of != "last"
        logits = next(spec for spec in prefill.outputs() if spec.name == "logits")
        self.vocabulary = int(logits.shape[-1])
        self._target = llvm_target(features, threads=threads)
        self._programs = programs
        self._graphs = {phase: _Graph(one, self._target) for phase, one in programs.items()}
        self._tapped: dict[Phase, _Graph] = {}
        stored = model.programs.stored_weights()
        self._params = {key: _parameter(model, weight) for key, weight in stored.items()}
        self._caches = {
            spec.name: np.zeros([int(axis) for axis in spec.shape], DTYPES[spec.dtype])
            for spec in prefill.inputs()
            if spec.name in prefill.aliases.values()
        }
        self._observer: Observer | None = None

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of one graph; what it gives as caches is kept.

        Raises:
            TargetError: The observer gave a value to go on with: the graph has run by then.
        """
        program = self._programs[phase]
        given = {
            "input_ids": tokens,
            "past_length": np.array([past], np.int64),
            "valid_length": np.array([valid], np.int64),
            **self._caches,
        }
        params = {name: self._params[weight.key] for name, weight in program.weights.items()}
        graph = self._graphs[phase] if self._observer is None else self._tapped[phase]
        found = graph.run(given, params)
        self._caches = {name: memory_of(found[out]) for out, name in program.aliases.items()}
        if self._observer is not None:
            _show(self._observer, graph.taps, found, past=past, valid=valid)
        logits = memory_of(found["logits"]).reshape(-1, self.vocabulary)
        # Every token's, where the slice was left out; else the wanted one's alone.
        return logits[valid - 1 if len(logits) > 1 else 0].astype(np.float32)

    def observe(self, observer: Observer | None) -> None:
        """Show the taps that the programs hold once a call has run: all are in memory then."""
        if observer is not None and not self._tapped:
            self._tapped = {
                phase: _Graph(one, self._target, is_tapped=True)
                for phase, one in self._programs.items()
            }
        self._observer = observer

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As attention reads them."""
        assert 0 <= start <= stop <= self.context, f"rows [{start}, {stop}) of {self.context}"
        keys, values = (
            self._rows(cache_name(layer, kind), start, stop) for kind in ("key", "value")
        )
        return keys, values

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, width] of one cache."""
        rows = self._caches[name][start:stop].astype(np.float32)
        scales = self._caches.get(f"{name}_scale")
        wide = rows if scales is None else rows * scales[start:stop]
        return wide.reshape(stop - start, -1)

    def close(self) -> None:
        """Release the graphs, the parameters and the caches."""
        self._graphs, self._tapped, self._params, self._caches = {}, {}, {}, {}


class _Graph:
    """One phase, compiled.

    Attributes:
        taps: Where the graph gives each tap; none unless it was asked for.
    """

    def __init__(
        self, program: Program, target: Mapping[str, object], *, is_tapped: bool = False
    ) -> None:
        tvm = import_tvm()
        program = program.copy()
        self.taps = program_taps(program) if is_tapped else {}
        _give(program, [place.tensor for place in self.taps.values()])
        self._inputs = [tensor.name for tensor in program.graph.inputs]
        self._outputs = [tensor.name for tensor in program.graph.outputs]
        module = relax_from_program(program)
        executable = tvm.compile(module, target=tvm.target.Target(target))
        self._machine = tvm.relax.VirtualMachine(executable, tvm.cpu())

    def run(
        self, given: Mapping[str, np.ndarray], params: "Mapping[str, tvm_ffi.Tensor]"
    ) -> "dict[str, tvm_ffi.Tensor]":
        """The outputs by name."""
        arguments = [params[n] if n in params else _tensor(given[n]) for n in self._inputs]
        return dict(zip(self._outputs, self._machine["main"](*arguments), strict=True))


def _give(program: Program, names: Sequence[str]) -> None:
    """Make outputs of tensors, with the types that TVM's importer asks for."""
    inferred = onnx.shape_inference.infer_shapes(program.model()).graph
    types = {one.name: one.type.tensor_type for one in (*inferred.value_info, *inferred.output)}
    tensors = program.graph.tensors()
    given = {tensor.name for tensor in program.graph.outputs}
    for name in dict.fromkeys(names):
        if name in given:
            continue
        tensor, found = tensors[name], types[name]
        tensor.dtype = found.elem_type
        tensor.shape = [axis.dim_value for axis in found.shape.dim]
        program.graph.outputs.append(tensor)


def _parameter(model: ProgramModel, weight: Weight) -> "tvm_ffi.Tensor":
    return _tensor(value(weight, model.checkpoint.rows))


def _tensor(array: np.ndarray) -> "tvm_ffi.Tensor":
    """A copy, aligned as TVM's kernels ask."""
    return import_tvm().runtime.tensor(np.ascontiguousarray(array))


def _show(
    observer: Observer,
    taps: Mapping[Tap, TapPlace],
    found: "Mapping[str, tvm_ffi.Tensor]",
    *,
    past: int,
    valid: int,
) -> None:
    for tap, place in taps.items():
        if tap.point not in observer.points:
            continue
        rows = place.rows(memory_of(found[place.tensor]), past=past, valid=valid)
        if observer.see(tap, rows) is not None:
            raise TargetError(
                f"{tap} cannot be replaced: the graph shows its taps once it has run",
                hint="watching works; a bundle's taps can be replaced",
            )
