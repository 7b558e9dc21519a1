"""Passes with a fault in one layer, one for each step of the way; as a YAML names them.

passes: {replace: {store-weights: {./ladder_faults.py:SwapStored: {layer: 3, dtype: bfloat16}}}}
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import concat, cut
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.cast_dtype import CastDtype
from passes.fuse_rms_norm import FuseRMSNorm
from passes.store_weights import StoreWeights


def _node(program: Program, name: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def _lose_value_bias(program: Program, layer: int) -> str:
    added = _node(program, f"model.layers.{layer}.self_attn.v_proj/Add")
    product, output = added.inputs[0], added.outputs[0]
    for reader in list(output.outputs):
        reader.inputs = [product if one is output else one for one in reader.inputs]
    tidy(program.graph)
    return added.name


@dataclass(frozen=True)
class LoseBias(Pass):
    """Among the canonical passes: the bias of one layer's values goes missing."""

    name: ClassVar = "lose-bias"
    layer: int

    def run(self, program: Program) -> PassReport:
        return PassReport((_lose_value_bias(program, self.layer),))


@dataclass(frozen=True)
class SmoothNorm(FuseRMSNorm):
    """`fuse-rms-norm` with a large epsilon in the norm before one layer's MLP."""

    layer: int = 0

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        norm = _node(program, f"model.layers.{self.layer}.post_attention_layernorm/FusedRMSNorm")
        norm.attrs["epsilon"] = 0.5
        return report


@dataclass(frozen=True)
class SwapStored(StoreWeights):
    """`store-weights` that stores the first two entries of one layer's value bias swapped."""

    layer: int = 0

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        name = f"model.layers.{self.layer}.self_attn.v_proj.bias"
        weight = program.weights[name]
        rows = [cut(weight, 0, *ends) for ends in ((1, 2), (0, 1), (2, weight.shape[0]))]
        program.weights[name] = concat(rows)
        return report


@dataclass(frozen=True)
class CastAway(CastDtype):
    """`cast-dtype` that loses the bias of one layer's values."""

    layer: int = 0

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        _lose_value_bias(program, self.layer)
        return report


@dataclass(frozen=True)
class DoubleScale(AnnotateInt8QDQ):
    """`annotate-int8-qdq` with twice the scale in one channel of a layer's down projection."""

    layer: int = 0

    def run(self, program: Program) -> PassReport:
        report = super().run(program)
        product = _node(program, f"model.layers.{self.layer}.mlp.down_proj/MatMul")
        (turned,) = product.inputs[1].inputs
        (dequantize,) = turned.inputs[0].inputs
        scales = dequantize.inputs[1]
        (channels,) = program.weights[scales.name].shape
        factors = np.ones(channels, np.float32)
        factors[1] = 2.0
        doubled = gs.Variable(f"{product.name}/doubled", dtype=np.float32, shape=[channels])
        constant = gs.Constant(f"{product.name}/factors", factors)
        name = f"{product.name}/double"
        node = gs.Node("Mul", name, inputs=[scales, constant], outputs=[doubled])
        program.graph.nodes.append(node)
        dequantize.inputs[1] = doubled
        tidy(program.graph)
        return report
