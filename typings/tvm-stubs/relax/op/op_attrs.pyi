"""Attributes of operators, with the fields that TVM fills from C++."""

from tvm.ir import Attrs

class TakeAttrs(Attrs):
    axis: int | None
    mode: str

class QuantizeAttrs(Attrs):
    axis: int
