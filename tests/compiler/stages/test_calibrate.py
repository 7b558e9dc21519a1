"""GPTQ over whole models: what is measured, in which order, and what programs read afterwards."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from quantized_forms import quantized, set_groups
from staged_models import POINTS, observed, staged
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import CheckpointError
from compiler.contracts.pass_base import Pass
from compiler.contracts.progress import Progress
from compiler.contracts.taps import Tap
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.gptq import gptq
from compiler.numerics.hessian import Hessian, factored
from compiler.numerics.layered_model import LayeredModel
from compiler.stages.calibrate import (
    CalibratedPart,
    CalibrationOptions,
    calibrate,
    parts_to_calibrate,
    scales_of,
    with_calibrated,
)
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.store_weights import StoreWeights
from targets.onnxruntime.runner import OnnxRuntimeRunner

TOKENS = np.random.default_rng(8).integers(0, VOCABULARY, (6, CONTEXT))
ORDER: tuple[str, ...] = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
# The tap that each reads.
READ: Mapping[str, str] = dict(
    zip(ORDER, ("norm1",) * 3 + ("attn",) + ("norm2",) * 2 + ("act",), strict=True)
)
DEFAULT = CalibrationOptions()


def parts_of(
    model: ProgramModel, options: CalibrationOptions = DEFAULT, progress: Progress | None = None
) -> dict[str, CalibratedPart]:
    """By module."""
    read = model.checkpoint.rows
    layered = LayeredModel(model.programs.programs["prefill"], read, is_optimised=False)
    found = calibrate(layered, read, TOKENS, options, progress=progress or Progress())
    parts = list(found)
    assert [part.codes for part in parts] == list(parts_to_calibrate(layered))
    return {part.module: part for part in parts}


def float_model(traced_models: TracedModels, parts: Sequence[CalibratedPart]) -> ProgramModel:
    """The unquantized model, whose checkpoint holds the dequantized weights."""
    model = staged(traced_models, "gqa", POINTS["slice"])
    arrays = {f"{part.module}.weight": dequantized(part) for part in parts}
    rows = model.checkpoint.rows

    class Changed(CheckpointRef):
        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return arrays[name][start:stop] if name in arrays else rows(name, start, stop)

    ref = model.checkpoint
    return ProgramModel(model.programs, Changed(ref.path, ref.config, ref.tensors, ref.digest))


def dequantized(part: CalibratedPart) -> np.ndarray:
    codes, scales = part.rounded.codes.astype(np.float32), part.rounded.scales
    if scales.ndim == 1:
        return codes * scales[:, None]
    groups = codes.reshape(*scales.shape, -1) * scales[..., None]
    return groups.reshape(codes.shape)


def taps_over_samples(model: ProgramModel, tap: Tap) -> list[np.ndarray]:
    """A tap's rows in each window of the samples."""
    runners = [(OnnxRuntimeRunner(model), sample) for sample in TOKENS.tolist()]
    return [
        observed(runner, sample[start : start + WINDOW])[1][tap]
        for runner, sample in runners
        for start in range(0, CONTEXT, WINDOW)
    ]


@pytest.mark.parametrize("is_sequential", [False, True])
def test_each_linear_is_rounded_for_what_the_layers_before_give(
    traced_models: TracedModels, is_sequential: bool
):
    """Held to taps of a float model whose weights are those chosen before."""
    model = staged(traced_models, "gqa", POINTS["int8"])
    options = CalibrationOptions(true_sequential=is_sequential)
    parts = parts_of(model, options)
    assert list(parts) == [
        f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in range(2)
        for name in ORDER
    ]
    for module in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"):
        part = parts[module]
        name = module.rpartition(".")[2]
        layer = int(module.split(".")[2])
        before = [
            other
            for other in parts.values()
            if int(other.module.split(".")[2]) < layer
            or (
                is_sequential
                and other.module.startswith(f"model.layers.{layer}.")
                and ORDER.index(other.module.rpartition(".")[2]) < ORDER.index(name)
            )
        ]
        hessian = Hessian("cpu")
        for rows in taps_over_samples(float_model(traced_models, before), Tap(layer, READ[name])):
            hessian.add(rows)
        found = factored(hessian.matrix(), damping=0.01, act_order=True, where="")
        weight = model.checkpoint.rows(f"{module}.weight", 0, part.codes.shape[0])
        wanted = gptq(weight.astype(np.float32), found, bits=8, group=weight.shape[1], name="")
        np.testing.assert_allclose(part.rounded.error, wanted.error, rtol=5e-3)
        np.testing.assert_allclose(part.rounded.energy, wanted.energy, rtol=1e-4)
        assert np.mean(part.rounded.codes != wanted.codes) < 0.02


@pytest.mark.parametrize(
    ("bits", "group", "act_order"),
    [(8, 0, True), (8, 0, False), (4, 0, True), (4, 8, True), (4, 8, False), (8, 8, True)],
)
def test_every_linear_is_better_than_rounded_to_nearest(
    traced_models: TracedModels, bits: int, group: int, act_order: bool
):
    model = staged(traced_models, "own-head-dim", POINTS["int8"])
    for program in model.programs:
        assert set_groups(program, bits=bits, group=group) == 14
    parts = parts_of(model, CalibrationOptions(act_order=act_order))
    assert len(parts) == 14
    for part in parts.values():
        rounded = part.rounded
        assert rounded.error < rounded.nearest_error, part.module
        assert rounded.scales.shape == part.scales.shape
        assert np.abs(rounded.codes).max() <= 2 ** (bits - 1) - 1
        assert part.damping == 0.01
    total = sum(part.rounded.error for part in parts.values())
    assert total < 0.9 * sum(part.rounded.nearest_error for part in parts.values())


@pytest.mark.parametrize("point", ["int8", "before storage", "vastai"])
def test_programs_read_the_calibrated_tensors(traced_models: TracedModels, point: str):
    """Below a transpose, in a join, in both phases: it is the model of the rounded weights."""
    points = {**POINTS, "before storage": (*POINTS["slice"], AnnotateInt8QDQ())}
    passes: Sequence[Pass] = points[point]
    model = staged(traced_models, "gqa", passes)
    parts = parts_of(model)
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for part in parts.values():
        made = ((part.codes, part.rounded.codes), (part.scales, part.rounded.scales))
        for weight, array in made:
            names[weight.key] = f"made of {weight.key}"
            arrays[names[weight.key]] = array
    before = {p.phase: dict(p.weights) for p in model.programs}

    found = with_calibrated(model.programs, names)

    assert {p.phase: dict(p.weights) for p in model.programs} == before
    ref = model.checkpoint

    class Extended(CheckpointRef):
        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return arrays[name][start:stop] if name in arrays else ref.rows(name, start, stop)

    extended = Extended(ref.path, ref.config, ref.tensors, ref.digest)
    for program in found:
        for name, weight in program.weights.items():
            assert weight.shape == before[program.phase][name].shape
            assert weight.sources() == before[program.phase][name].sources()
    runner = OnnxRuntimeRunner(ProgramModel(found, extended))
    plain = OnnxRuntimeRunner(float_model(traced_models, list(parts.values())))
    nearest = OnnxRuntimeRunner(model)
    prompt = TOKENS[0, :11].tolist()
    for tokens in (prompt, [5]):
        logits, wanted = runner.extend(tokens), plain.extend(tokens)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-5)
        assert np.abs(nearest.extend(tokens) - wanted).max() > 1e-4


def test_what_is_left_out_stays(traced_models: TracedModels):
    """A layer without quantized linears, and a head that keeps its codes rounded to nearest."""
    passes = (
        *POINTS["slice"],
        AnnotateInt8QDQ(include=("model.layers.1.mlp.*_proj", "lm_head")),
        StoreWeights(),
    )
    model = staged(traced_models, "gqa", passes)
    seen: list[tuple[int, int, str]] = []

    class Watching(Progress):
        def update(self, done: int, total: int, unit: str) -> None:
            seen.append((done, total, unit))

    parts = parts_of(model, progress=Watching())
    assert list(parts) == [f"model.layers.1.mlp.{name}" for name in ORDER[4:]]
    assert seen == [(1, 2, "layers"), (2, 2, "layers")]
    names = {part.codes.key: "x" for part in parts.values()}
    found = with_calibrated(model.programs, names).programs["decode"].weights
    assert found["lm_head.weight"].key == "quantize(lm_head.weight)"


def test_equal_calibrations_are_equal(traced_models: TracedModels):
    one, two = (parts_of(staged(traced_models, "gqa", POINTS["int8"])) for _ in range(2))
    for module, part in one.items():
        np.testing.assert_array_equal(part.rounded.codes, two[module].rounded.codes)
        np.testing.assert_array_equal(part.rounded.scales, two[module].rounded.scales)
        assert part.rounded.error == two[module].rounded.error


def test_a_weight_that_is_not_finite_is_named(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    rows = model.checkpoint.rows

    def read(name: str, start: int, stop: int) -> np.ndarray:
        array = rows(name, start, stop).copy()
        if name == "model.layers.0.mlp.up_proj.weight" and start == 0:
            array[0, 0] = np.nan
        return array

    layered = LayeredModel(model.programs.programs["prefill"], read)
    with pytest.raises(CheckpointError) as caught:
        list(calibrate(layered, read, TOKENS, DEFAULT))
    assert caught.value.code == "non-finite"
    assert str(caught.value.where).startswith("model.layers.0.mlp.")


def test_the_scale_beside_codes_is_the_pass_s(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    weights = model.programs.programs["prefill"].weights
    weight = weights["model.layers.0.mlp.up_proj.weight"]
    for group in (0, 8):
        codes, scales = quantized(weight, bits=4, group=group)
        assert scales_of(codes) == scales
    assert scales_of(weight) == weights["model.layers.0.mlp.up_proj.weight_scale"]
