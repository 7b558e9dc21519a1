"""Both phases of a model on onnxruntime, unoptimised and on one thread, with one KV cache.

The programs may have the traced signature, that of fold-mask, or that of plan-kv-cache; caches are
held as the programs take them: [1, K, past, d] of what is filled, or [C, K, d] in 32 or 16 bits, or
in int8 with scales [C, K, 1] beside it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx.shape_inference import InferenceError

from compiler.contracts.errors import PassError, TargetError
from compiler.contracts.program import Phase, Program, TensorSpec
from compiler.contracts.runner import WindowedRunner
from compiler.contracts.taps import Observer
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weights import DTYPES
from compiler.numerics.measured_pass import ParameterValues
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.segments import SegmentedRun

if TYPE_CHECKING:
    from onnxruntime import OrtValue

_CACHE_PREFIX = "past_key_values."


class OnnxRuntimeRunner(WindowedRunner):
    """One model, one KV cache.

    Raises:
        TargetError: The caches of the two phases differ.
    """

    def __init__(self, model: ProgramModel) -> None:
        programs = model.programs.programs
        prefill = programs["prefill"]
        specs = _cache_specs(prefill)
        for phase, program in programs.items():
            if _cache_specs(program) != specs:
                raise TargetError(
                    f"the caches of prefill and {phase} differ in shape",
                    hint="let both phases go through the same passes",
                )
        self.window, self.context, self.layers = prefill.tokens, prefill.context, prefill.layers
        self.has_decode = "decode" in programs
        self.takes_padding = prefill.logits_of != "last"
        self.has_every_row = prefill.logits_of == "all"
        logits = next(spec for spec in prefill.outputs() if spec.name == "logits")
        self.vocabulary = int(logits.shape[-1])
        values = ParameterValues(model.checkpoint.rows)
        self._phases = {
            phase: _Phase(program, values.of(program.weights))
            for phase, program in programs.items()
        }
        self._observer: Observer | None = None
        self._caches = {spec.name: _empty(spec) for spec in specs}
        self._token_axis = {spec.name: 0 if len(spec.shape) == 3 else 2 for spec in specs}

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of one graph; what it gives as caches is kept."""
        return self._rows(phase, tokens, past=past, valid=valid)[-1]

    def step_rows(self, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """One call of the prefill graph."""
        return self._rows("prefill", tokens, past=past, valid=valid)

    def _rows(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """The logits that a graph gives: every token's, or the wanted one's alone."""
        caches = {name: self._cut(name, cache, past) for name, cache in self._caches.items()}
        found = self._phases[phase].run(
            {**_lengths(tokens, past=past, valid=valid), **caches},
            self._observer,
            past=past,
            valid=valid,
        )
        # bfloat16 comes out in float32, and goes in as what it is.
        self._caches = {
            name: self._cut(name, found[_present(name)], past + valid).astype(
                cache.dtype, copy=False
            )
            for name, cache in caches.items()
        }
        # Where the slice was left out, padding has rows, too.
        return found["logits"].reshape(-1, self.vocabulary)[:valid].astype(np.float32)

    def observe(self, observer: Observer | None) -> None:
        """Show the taps that the programs hold, the graphs being run in pieces; None ends it."""
        self._observer = observer

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values as attention reads them; a growing cache holds what was read."""
        assert 0 <= start <= stop <= self.length, f"rows {start}:{stop} of {self.length}"
        names = [f"{_CACHE_PREFIX}{layer}.{kind}" for kind in ("key", "value")]
        held = self._caches[names[0]].shape[self._token_axis[names[0]]]
        if stop > held:
            raise TargetError(f"the cache of layer {layer} holds {held} positions, not {stop}")
        keys, values = (self._cached(name, start, stop) for name in names)
        return keys, values

    def _cached(self, name: str, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, width] of one cache."""
        rows, scales = (
            np.moveaxis(self._caches[one], self._token_axis[one], 0)[start:stop].astype(np.float32)
            if one in self._caches
            else np.float32(1)
            for one in (name, f"{name}_scale")
        )
        return (rows * scales).reshape(stop - start, -1)

    def close(self) -> None:
        """Release the sessions, the parameters and the caches."""
        self._phases, self._caches = {}, {}

    def _cut(self, name: str, cache: np.ndarray, length: int) -> np.ndarray:
        """A cache as a program takes it after `length` tokens: a growing one is cut to them."""
        return cache if self._token_axis[name] == 0 else cache[:, :, :length]


class _Phase:
    """One program with its parameters; its sessions are made when they are first needed."""

    def __init__(self, program: Program, parameters: "Mapping[str, OrtValue]") -> None:
        self._program, self._parameters = program, parameters
        self._whole: ReferenceSession | None = None
        self._pieces: SegmentedRun | None = None

    def run(
        self, inputs: Mapping[str, np.ndarray], observer: Observer | None, *, past: int, valid: int
    ) -> dict[str, np.ndarray]:
        """The outputs by name.

        Raises:
            PassError: onnxruntime refuses the graph, or a node fails.
        """
        feeds = {**self._parameters, **inputs}
        try:
            if observer is None:
                self._whole = self._whole or ReferenceSession(self._program.model())
                return self._whole.run(feeds)
            self._pieces = self._pieces or SegmentedRun(self._program)
            return self._pieces.run(feeds, observer, past=past, valid=valid)
        except (PassError, InferenceError) as error:
            said = error.message if isinstance(error, PassError) else " ".join(str(error).split())
            raise PassError(
                said,
                where=self._program.phase,
                hint="a pass left it so; onnxruntime@<pass> runs the graph as of an earlier one",
                code="not-runnable",
            ) from error


def _lengths(tokens: np.ndarray, *, past: int, valid: int) -> dict[str, np.ndarray]:
    """Tokens and lengths in every form that a program may take them in."""
    width = tokens.shape[1]
    return {
        "input_ids": tokens,
        "attention_mask": (np.arange(past + width) < past + valid).astype(np.int64)[None],
        "position_ids": np.arange(past, past + width, dtype=np.int64)[None],
        "past_length": np.array([past], np.int64),
        "valid_length": np.array([valid], np.int64),
    }


def _cache_specs(program: Program) -> Sequence[TensorSpec]:
    return [spec for spec in program.inputs() if spec.name.startswith(_CACHE_PREFIX)]


def _empty(spec: TensorSpec) -> np.ndarray:
    """Nothing cached: no positions where they are counted, zeros where all are there."""
    return np.zeros([0 if isinstance(n, str) else n for n in spec.shape], DTYPES[spec.dtype])


def _present(cache: str) -> str:
    """The output that a cache's next value is: `present.3.key` of `past_key_values.3.key`."""
    return f"present.{cache.removeprefix(_CACHE_PREFIX)}"
