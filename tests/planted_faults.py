"""Eleven faults that compilers of language models are known for, each planted in one layer.

A pass for the end of the list (before `store-weights`), as a YAML names it:

    passes: {add: [{pass: ./planted_faults.py:PlantFault, options: {fault: drop-bias, layer: 17}}]}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program, tidy

Plant = Callable[[Program, int], str]


def _node(program: Program, name: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def _insert(
    program: Program, op: str, name: str, inputs: list[gs.Tensor], **attrs: object
) -> gs.Tensor:
    output = gs.Variable(name)
    program.graph.nodes.append(gs.Node(op, name, attrs=attrs, inputs=inputs, outputs=[output]))
    return output


def _replace_input(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    node.inputs = [new if tensor is old else tensor for tensor in node.inputs]


def drop_bias(program: Program, layer: int) -> str:
    """The query projection's bias goes missing."""
    added = _node(program, f"model.layers.{layer}.self_attn.q_proj/Add")
    product, output = added.inputs[0], added.outputs[0]
    for reader in list(output.outputs):
        _replace_input(reader, output, product)
    return added.name


def swap_keys_and_values(program: Program, layer: int) -> str:
    """Each of the two projections takes the other's weight and bias."""
    prefix = f"model.layers.{layer}.self_attn"
    for op in ("MatMul", "Add"):
        key, value = (_node(program, f"{prefix}.{one}_proj/{op}") for one in "kv")
        theirs = key.inputs[1], value.inputs[1]
        key.inputs[1], value.inputs[1] = theirs[1], theirs[0]
    return f"{prefix}.k_proj/MatMul"


def change_rope_base(program: Program, layer: int) -> str:
    """One layer rotates by angles of another base: a twelfth more at each frequency."""
    faster = gs.Constant("fault.factor", np.array([13 / 12], np.float32))
    angles = _node(program, "model.rotary_emb/Concat").outputs[0]
    turned = _insert(program, "Mul", f"model.layers.{layer}.self_attn/fault", [angles, faster])
    axis = gs.Constant("fault.axis", np.array([1], np.int64))
    for op in ("Cos", "Sin"):
        kind = _node(program, f"model.rotary_emb/{op}").outputs[0]
        (unsqueeze,) = kind.outputs
        own = _insert(program, op, f"model.layers.{layer}.self_attn/fault/{op}", [turned])
        wide = _insert(program, "Unsqueeze", f"{own.name}/Unsqueeze", [own, axis])
        for reader in list(unsqueeze.outputs[0].outputs):
            if reader.name.startswith(f"model.layers.{layer}.self_attn/"):
                _replace_input(reader, unsqueeze.outputs[0], wide)
    return turned.name


def change_epsilon(program: Program, layer: int) -> str:
    """Qwen2's 1e-6 becomes the 1e-5 that others have, in the norm before attention."""
    norm = _node(program, f"model.layers.{layer}.input_layernorm/FusedRMSNorm")
    assert norm.attrs["epsilon"] < 2e-6
    norm.attrs["epsilon"] = 1e-5
    return norm.name


def double_one_channel(program: Program, layer: int) -> str:
    """The quantization scale of one channel of the up projection is twice what it was."""
    product = _node(program, f"model.layers.{layer}.mlp.up_proj/MatMul")
    (turned,) = product.inputs[1].inputs
    (dequantize,) = turned.inputs[0].inputs
    scales = dequantize.inputs[1]
    (channels,) = program.weights[scales.name].shape
    factors = np.ones(channels, np.float32)
    factors[channels // 3] = 2.0
    constant = gs.Constant("fault.factors", factors)
    dequantize.inputs[1] = _insert(program, "Mul", f"{product.name}/fault", [scales, constant])
    return product.name


def widen_window(program: Program, layer: int) -> str:
    """The sliding window lets each row see one position more."""
    attention = _node(program, f"model.layers.{layer}.self_attn/FusedAttention")
    assert attention.attrs["window"] > 0, "the layer slides"
    attention.attrs["window"] += 1
    return attention.name


def see_one_ahead(program: Program, layer: int) -> str:
    """The causal mask is off by one: each row sees the slot behind its own, where there is one."""
    attention = _node(program, f"model.layers.{layer}.self_attn/FusedAttention")
    _, _, _, past, valid = attention.inputs
    one = gs.Constant("fault.one", np.array([1], np.int64))
    slots = gs.Constant("fault.slots", np.array([program.context], np.int64))
    later = _insert(program, "Add", f"{attention.name}/fault", [past, one])
    last = _insert(program, "Sub", f"{attention.name}/last", [slots, valid])
    attention.inputs[3] = _insert(program, "Min", f"{attention.name}/ahead", [later, last])
    return attention.name


def write_one_late(program: Program, layer: int) -> str:
    """Keys are written one slot behind their own."""
    update = next(
        node
        for node in program.graph.nodes
        if node.op == "CacheUpdate" and node.outputs[0].name == f"present.{layer}.key"
    )
    past = update.inputs[2]
    one = gs.Constant("fault.one", np.array([1], np.int64))
    late = _insert(program, "Add", f"model.layers.{layer}.self_attn/fault", [past, one])
    update.inputs[2] = late
    return update.name


def read_padding(program: Program, layer: int) -> str:
    """The head reads the window's last row, though padding may stand there."""
    del layer
    gather = _node(program, "lm_head/Gather")
    gather.inputs[1] = gs.Constant("fault.row", np.array([program.tokens - 1], np.int64))
    return gather.name


def overflow_half(program: Program, layer: int) -> str:
    """An activation goes through float16, which ends at 65504."""
    down = _node(program, f"model.layers.{layer}.mlp.down_proj/MatMul")
    value = down.inputs[0]
    large = gs.Constant("fault.large", np.array([1e9], np.float32))
    name = f"model.layers.{layer}.mlp/fault"
    grown = _insert(program, "Mul", f"{name}/Mul", [value, large])
    half = _insert(program, "Cast", f"{name}/half", [grown], to=10)
    wide = _insert(program, "Cast", f"{name}/wide", [half], to=1)
    shrunk = _insert(program, "Div", f"{name}/Div", [wide, large])
    down.inputs[0] = shrunk
    return down.name


def transpose_head(program: Program, layer: int) -> str:
    """A square head is applied the other way round."""
    del layer
    head = _node(program, "lm_head/MatMul")
    weight = head.inputs[1]
    head.inputs[1] = _insert(program, "Transpose", "lm_head/fault", [weight], perm=[1, 0])
    return head.name


FAULTS: Mapping[str, Plant] = {
    "drop-bias": drop_bias,
    "swap-keys-and-values": swap_keys_and_values,
    "change-rope-base": change_rope_base,
    "change-epsilon": change_epsilon,
    "double-one-channel": double_one_channel,
    "widen-window": widen_window,
    "see-one-ahead": see_one_ahead,
    "write-one-late": write_one_late,
    "read-padding": read_padding,
    "overflow-half": overflow_half,
    "transpose-head": transpose_head,
}
FaultName = Literal[
    "drop-bias",
    "swap-keys-and-values",
    "change-rope-base",
    "change-epsilon",
    "double-one-channel",
    "widen-window",
    "see-one-ahead",
    "write-one-late",
    "read-padding",
    "overflow-half",
    "transpose-head",
]
_PREFILL_ALONE = ("read-padding",)


@dataclass(frozen=True)
class PlantFault(Pass):
    """One of `FAULTS` in one layer; promises nothing and is not to be verified."""

    name: ClassVar = "plant-fault"
    after: ClassVar = ("fuse-attention", "fuse-rms-norm", "fuse-silu-mul")
    fault: FaultName = "drop-bias"
    layer: int = 0

    def run(self, program: Program) -> PassReport:
        """Plant it."""
        if program.phase == "decode" and self.fault in _PREFILL_ALONE:
            return PassReport()
        where = FAULTS[self.fault](program, self.layer)
        tidy(program.graph)
        return PassReport((where,))
