"""Programs, tokens -> codes and scales by GPTQ, one layer at a time.

    hidden states of all samples, as the quantized layers before have made them
      -> the layer in float32, watched: a Hessian for each value that its linears read
      -> codes of each linear   -> the layer with the rounded weights -> hidden states for the next

With `true_sequential` a layer is watched once for each value that its linears read (q, k, v | o |
gate, up | down), with the weights before it rounded already; without, once, unrounded. Linears
outside the layers (the head) keep their codes rounded to nearest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weight_values import RowReader, chunks, value
from compiler.contracts.weights import Weight, calibrated, cast, source
from compiler.numerics.float_twin import QuantizedLinear
from compiler.numerics.gptq import RoundedWeight, gptq
from compiler.numerics.hessian import FactoredHessian, Hessian, factored
from compiler.numerics.layered_model import LayeredModel
from compiler.numerics.quantized_weights import (
    bits_of,
    group_of,
    module_of_part,
    quantized_parts,
    replaced,
    scales_of,
)

_SILENT = Progress()


@dataclass(frozen=True)
class CalibrationOptions:
    """How: `frontend.quantize.calib_args` and `device`."""

    act_order: bool = True
    damping: float = 0.01
    true_sequential: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class CalibratedPart:
    """One module's weight.

    Attributes:
        codes: Its `quantize` expression.
        scales: Its `scale` expression.
        rounded: Their values by GPTQ.
        damping: Of the Hessian.
    """

    codes: Weight
    scales: Weight
    rounded: RoundedWeight
    damping: float

    @property
    def module(self) -> str:
        """Its path."""
        return module_of_part(self.codes)


def parts_to_calibrate(model: LayeredModel) -> tuple[Weight, ...]:
    """The `quantize` expressions of all layers, in the order in which `calibrate` gives them."""
    return tuple(
        part
        for layer in range(model.layers)
        for _, linears in _by_operand(model.linears(layer)).items()
        for linear in linears
        for part in quantized_parts(linear.codes)
    )


def calibrate(
    model: LayeredModel,
    read: RowReader,
    tokens: np.ndarray,
    options: CalibrationOptions,
    *,
    progress: Progress = _SILENT,
) -> Iterator[CalibratedPart]:
    """The weights of each module, layer by layer; memory holds one layer's.

    Args:
        model: Of a prefill program.
        read: Its checkpoint's rows.
        tokens: int64 [samples, length], no longer than the context.
        options: How.
        progress: Told of each finished layer.

    Raises:
        CheckpointError: Weights or what they read are not finite, or a Hessian cannot be factored.
    """
    hidden = model.embed(tokens)
    for layer in range(model.layers):
        groups = _by_operand(model.linears(layer))
        steps = [[operand] for operand in groups] if options.true_sequential else [list(groups)]
        weights: dict[str, np.ndarray] = {}
        for operands in steps if groups else ():
            hessians = _hessians(model, layer, hidden, weights, operands, device=options.device)
            for operand in operands:
                linears = groups[operand]
                hessian = factored(
                    hessians.pop(operand).matrix(),
                    damping=options.damping,
                    act_order=options.act_order,
                    where=module_of_part(quantized_parts(linears[0].codes)[0]),
                )
                for linear in linears:
                    parts = [_part(codes, hessian, read) for codes in quantized_parts(linear.codes)]
                    weights[linear.parameter] = _float_weight(linear, parts)
                    yield from parts
        if layer + 1 < model.layers:
            model.run_layer(layer, hidden, weights=weights, out=hidden)
        progress.update(layer + 1, model.layers, "layers")


def with_calibrated(programs: ProgramSet, names: Mapping[str, str]) -> ProgramSet:
    """Programs that read calibrated tensors.

    Args:
        programs: Left as they are; the graphs are shared.
        names: Key of a `quantize` or `scale` expression -> the tensor that takes its place.
    """

    def leaf(weight: Weight) -> Weight:
        name = names.get(weight.key)
        return weight if name is None else calibrated(weight, name)

    def changed(program: Program) -> Program:
        weights = {
            name: replaced(weight, leaf) if _reads(weight, names) else weight
            for name, weight in program.weights.items()
        }
        return replace(program, weights=weights)

    return ProgramSet({program.phase: changed(program) for program in programs})


def _reads(weight: Weight, names: Mapping[str, str]) -> bool:
    return weight.key in names or any(_reads(operand, names) for operand in weight.operands)


def _by_operand(linears: tuple[QuantizedLinear, ...]) -> dict[str, list[QuantizedLinear]]:
    """Linears that read the same values, together; in the order of computation."""
    found: dict[str, list[QuantizedLinear]] = {}
    for linear in linears:
        found.setdefault(linear.operand, []).append(linear)
    return found


def _hessians(
    model: LayeredModel,
    layer: int,
    hidden: np.ndarray,
    weights: Mapping[str, np.ndarray],
    operands: list[str],
    *,
    device: str,
) -> dict[str, Hessian]:
    hessians = {operand: Hessian(device) for operand in operands}

    def watch(operand: str, rows: np.ndarray) -> None:
        if operand in hessians:
            hessians[operand].add(rows)

    model.watch_layer(layer, hidden, watch, weights=weights)
    return hessians


def _part(codes: Weight, hessian: FactoredHessian, read: RowReader) -> CalibratedPart:
    made_of = cast(codes.operands[0], "float32")
    weight = np.concatenate(list(chunks(made_of, read)))
    rounded = gptq(
        weight,
        hessian,
        bits=bits_of(codes),
        group=group_of(codes) or weight.shape[1],
        name=module_of_part(codes),
    )
    return CalibratedPart(codes, scales_of(codes), rounded, hessian.damping)


def _float_weight(linear: QuantizedLinear, parts: list[CalibratedPart]) -> np.ndarray:
    """What the codes stand for, in the layout of the parameter."""
    dequantized = {part.codes.key: _dequantized(part) for part in parts}

    def leaf(codes: Weight) -> Weight:
        return source(codes.key, codes.shape, "float32")

    def read(name: str, start: int, stop: int) -> np.ndarray:
        return dequantized[name][start:stop]

    return value(replaced(linear.codes, leaf), read)


def _dequantized(part: CalibratedPart) -> np.ndarray:
    codes, scales = part.rounded.codes, part.rounded.scales.reshape(len(part.rounded.codes), -1)
    group = codes.shape[1] // scales.shape[1]
    return codes.astype(np.float32) * np.repeat(scales, group, axis=1)
