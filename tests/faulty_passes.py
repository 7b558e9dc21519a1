"""Copies of the built-in passes with a fault in one layer, for what must find it.

Each is the pass itself, and then an edit of what it left: a bias that goes missing, a mask that is
off by one, a scale of the wrong channel. A faulty pass keeps the structure valid.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import Weight, concat, cut
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

LAYERS, LAYER = 6, 4
Edit = Callable[[Program], None]


def node(program: Program, name: str) -> gs.Node:
    """The node of that name."""
    return next(node for node in program.graph.nodes if node.name == name)


def faulty(rewriting: Pass, edit: Edit) -> Pass:
    """`rewriting`, and then `edit`, under the same name, options and promises."""

    @dataclass(frozen=True)
    class Faulty(type(rewriting)):
        """A copy with a fault."""

        name: ClassVar = rewriting.name

        def run(self, program: Program) -> PassReport:
            report = rewriting.run(program)
            edit(program)
            tidy(program.graph)
            return report if report.rewrites else replace(report, rewrites=(_any_node(program),))

    return Faulty(**{field.name: getattr(rewriting, field.name) for field in fields(rewriting)})


def _any_node(program: Program) -> str:
    return program.graph.nodes[0].name


def _bypass(program: Program, name: str) -> None:
    """Readers of the node's output take its first input."""
    gone = node(program, name)
    source, output = gone.inputs[0], gone.outputs[0]
    for reader in list(output.outputs):
        reader.inputs = [source if tensor is output else tensor for tensor in reader.inputs]


def drop_bias(program: Program) -> None:
    """The value projection's bias of one layer goes missing."""
    _bypass(program, f"model.layers.{LAYER}.self_attn.v_proj/Add")


def scale_twice(program: Program) -> None:
    """One layer's scores are scaled by another constant."""
    for scores in program.graph.nodes:
        if scores.op != "Mul" or not scores.name.startswith(f"model.layers.{LAYER}.self_attn/"):
            continue
        for index, tensor in enumerate(scores.inputs):
            if isinstance(tensor, gs.Constant) and tensor.values.size == 1:
                value = np.asarray(tensor.values * 1.5, np.float32)
                scores.inputs[index] = gs.Constant(f"{tensor.name}.again", value)


def shift_mask(program: Program) -> None:
    """Every row sees one column more: past_length enters the mask one too large."""
    mask = next(n for n in program.graph.nodes if n.op == "CausalMask")
    later = gs.Variable("model.mask/later")
    program.graph.nodes.append(
        gs.Node(
            "Add",
            "model.mask/later",
            inputs=[mask.inputs[1], gs.Constant("model.mask/later.1", np.array([1], np.int64))],
            outputs=[later],
        )
    )
    mask.inputs[1] = later


def write_late(program: Program) -> None:
    """One layer's keys are written a slot late."""
    update = node(
        program,
        next(
            n.name
            for n in program.graph.nodes
            if n.op == "CacheUpdate" and n.outputs[0].name == f"present.{LAYER}.key"
        ),
    )
    later = gs.Variable(f"{update.name}/later")
    program.graph.nodes.append(
        gs.Node(
            "Add",
            f"{update.name}/later",
            inputs=[update.inputs[2], gs.Constant(f"{update.name}/one", np.array([1], np.int64))],
            outputs=[later],
        )
    )
    update.inputs[2] = later


def slice_first(program: Program) -> None:
    """The slice takes the first row."""
    row = next(n for n in program.graph.nodes if n.name == "lm_head/last_valid")
    row.inputs[0] = gs.Constant("lm_head/first", np.array([1], np.int64))


def swap_keys_and_values(program: Program) -> None:
    """One fused attention reads its keys as values."""
    fused = node(program, f"model.layers.{LAYER}.self_attn/FusedAttention")
    fused.inputs[1], fused.inputs[2] = fused.inputs[2], fused.inputs[1]


def lose_epsilon(program: Program) -> None:
    """One norm gets a large epsilon."""
    norm = node(program, f"model.layers.{LAYER}.input_layernorm/FusedRMSNorm")
    norm.attrs["epsilon"] = 0.1


def swap_gate_and_up(program: Program) -> None:
    """One gated activation applies silu to the other operand."""
    fused = next(
        n
        for n in program.graph.nodes
        if n.op == "FusedSiluMul" and n.name.startswith(f"model.layers.{LAYER}.")
    )
    fused.inputs = list(fused.inputs)[::-1]


def wrong_channel(program: Program) -> None:
    """One layer's o_proj is stored with its first two output channels swapped."""
    name = f"model.layers.{LAYER}.self_attn.o_proj.weight"
    program.weights[name] = _rows_swapped(program.weights[name])


def swap_bias(program: Program) -> None:
    """The first two entries of one layer's value bias change places."""
    name = f"model.layers.{LAYER}.self_attn.v_proj.bias"
    program.weights[name] = _rows_swapped(program.weights[name])


def _rows_swapped(weight: Weight) -> Weight:
    rows = weight.shape[0]
    return concat([cut(weight, 0, 1, 2), cut(weight, 0, 0, 1), cut(weight, 0, 2, rows)])


# The fault of each pass, and the layer that must be named; None where it is outside of the layers.
FAULTS: dict[str, tuple[Pass, Edit, int | None]] = {
    "keep-qkv-bias": (KeepQKVBias(), drop_bias, LAYER),
    "fold-constants": (FoldConstants(), scale_twice, LAYER),
    "fold-mask": (FoldMask(), shift_mask, 0),
    "plan-kv-cache": (PlanKVCache(), write_late, LAYER),
    "insert-strided-slice": (InsertStridedSlice(), slice_first, None),
    "fuse-attention": (FuseAttention(), swap_keys_and_values, LAYER),
    "fuse-rms-norm": (FuseRMSNorm(), lose_epsilon, LAYER),
    "fuse-silu-mul": (FuseSiluMul(), swap_gate_and_up, LAYER),
    "store-weights": (StoreWeights(), wrong_channel, LAYER),
}
