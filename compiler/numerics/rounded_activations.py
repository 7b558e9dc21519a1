"""Activations that are rounded to 16 bits and widened again: Cast(Cast(x, bfloat16), float32)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# ONNX's numbers of float32, and of float16 and bfloat16.
_FLOAT, _NARROW = 1, (10, 16)


def before_rounding(node: "gs.Node") -> "gs.Tensor | None":
    """x, where `node` is the Cast that widens it again; None where it is none."""
    if node.op != "Cast" or node.attrs["to"] != _FLOAT or not node.inputs[0].inputs:
        return None
    narrowing = node.inputs[0].inputs[0]
    is_narrow = narrowing.op == "Cast" and narrowing.attrs["to"] in _NARROW
    return narrowing.inputs[0] if is_narrow else None
