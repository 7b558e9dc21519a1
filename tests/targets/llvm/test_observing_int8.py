"""A model with int8 weights and int8 activations: onnxruntime's numbers, and every tap of it."""

import os

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from int8_activations import round_activations
from program_runs import run_program
from relax_runs import arguments, as_tensor
from rewritten_model import LAYERS, NAME, rewritten
from traced_models import WINDOW, TracedModels
from tvm import relax

from compiler.contracts.bundle import ModuleEntry
from compiler.contracts.program import Program
from compiler.contracts.taps import Observer, Tap, taps_of
from compiler.contracts.weight_values import value
from compiler.numerics.program_taps import program_taps
from compiler.relax import relax_from_program
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from targets.llvm.features import detect, llvm_target
from targets.llvm.fused import fused_converters
from targets.llvm.observing import Instrument
from targets.llvm.pipeline import pipeline
from targets.llvm.row_kernels import RowKernels

pytestmark = pytest.mark.slow

PAST, VALID = 5, 3
Answer = Callable[[Tap, np.ndarray], np.ndarray | None]


class Recorder(Observer):
    """Keeps what it sees, and answers with what it was told to."""

    points = frozenset(tap.point for tap in taps_of(LAYERS))

    def __init__(self, answer: Answer) -> None:
        self.seen: dict[Tap, np.ndarray] = {}
        self._answer = answer

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        """As an observer does."""
        self.seen[tap] = rows.copy()
        return self._answer(tap, rows)


class Model:
    """One phase of the model, compiled, that can be run and watched."""

    def __init__(self, traced_models: TracedModels) -> None:
        program, self.inputs = rewritten(
            traced_models,
            "prefill",
            past=PAST,
            valid=VALID,
            dtype="bfloat16",
            added=(AnnotateInt8QDQ(),),
        )
        assert round_activations(program) == 7
        assert sum(node.op == "QuantizedTokens" for node in program.graph.nodes) == 4
        self.program: Program = program
        self.checkpoint = traced_models.checkpoint(NAME, layers=LAYERS)
        features = detect()
        self._executable = tvm.compile(
            relax_from_program(program, fused=fused_converters(RowKernels(features))),
            target=tvm.target.Target(llvm_target(features, threads=2)),
            relax_pipeline=pipeline(RowKernels(features), threads=2),
        )

    def logits(self, recorder: Recorder | None = None) -> np.ndarray:
        """Of one call, watched or not."""
        assert isinstance(self._executable, relax.VMExecutable)
        machine = relax.VirtualMachine(self._executable, tvm.cpu())
        names = [tensor.name for tensor in self.program.graph.inputs]
        arrays = arguments(self.program, self.inputs, self.checkpoint)
        tensors = dict(zip(names, map(as_tensor, arrays), strict=True))
        if recorder is None:
            return machine["main"](*tensors.values())[0].numpy()
        params = tuple(name for name in names if name in self.program.weights)
        entry = ModuleEntry(
            phase="prefill",
            rank=0,
            folder="",
            tokens=WINDOW,
            inputs=self.program.inputs(),
            outputs=(),
            params=params,
            stored={},
            aliases={},
            logits_of="last_valid",
            target={},
        )
        instrument = Instrument(
            recorder,
            entry,
            params=[tensors[name] for name in params],
            caches={n: t for n, t in tensors.items() if n.startswith("past_key_values")},
            layers=LAYERS,
        )
        machine.set_instrument(instrument)  # pyright: ignore[reportAttributeAccessIssue]
        given = list(tensors.values())
        outputs = instrument.run(machine["main"], given, past=PAST, valid=VALID)
        return np.from_dlpack(outputs[0])


@pytest.fixture(scope="module")
def model(traced_models: TracedModels) -> Model:
    return Model(traced_models)


def test_it_equals_onnxruntime(model: Model):
    wanted = run_program(model.program, model.inputs, model.checkpoint)["logits"]
    np.testing.assert_allclose(model.logits(), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("answer", [lambda _tap, _rows: None, lambda _tap, rows: rows])
def test_watching_changes_no_bit_and_hides_nothing(model: Model, answer: Answer):
    recorder = Recorder(answer)
    np.testing.assert_array_equal(model.logits(recorder), model.logits())
    assert set(recorder.seen) == {tap for tap in taps_of(LAYERS) if tap.point != "logits"}
    assert set(program_taps(model.program)) == set(taps_of(LAYERS))


def test_products_read_the_codes_of_their_taps(model: Model):
    recorder = Recorder(lambda _tap, _rows: None)
    model.logits(recorder)
    assert_products(model, recorder)


@pytest.mark.parametrize("point", ["attn", "act"])
def test_a_replaced_value_is_rounded_again(model: Model, point: str):
    forced = np.random.default_rng(3)

    def answer(tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        if tap.point != point:
            return None
        recorder.seen[tap] = forced.standard_normal(rows.shape).astype(np.float32)
        return recorder.seen[tap]

    recorder = Recorder(answer)
    model.logits(recorder)
    assert_products(model, recorder)


def assert_products(model: Model, recorder: Recorder) -> None:
    """Each linear gives the product of its weight with the rounded tap before it."""
    for point, module, taken in (
        ("q", "self_attn.q_proj", "norm1"),
        ("o", "self_attn.o_proj", "attn"),
        ("up", "mlp.up_proj", "norm2"),
        ("down", "mlp.down_proj", "act"),
    ):
        x = recorder.seen[Tap(0, taken)]
        scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        stem = f"model.layers.0.{module}"
        weights = {
            name: value(weight, model.checkpoint.rows)
            for name, weight in model.program.weights.items()
            if name.startswith(stem)
        }
        wide = weights[f"{stem}.weight"] * weights[f"{stem}.weight_scale"][:, None]
        wanted = np.rint(x / scales) * scales @ wide.T + weights.get(f"{stem}.bias", np.float32(0))
        found = recorder.seen[Tap(0, point)]
        np.testing.assert_allclose(
            found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=point
        )
