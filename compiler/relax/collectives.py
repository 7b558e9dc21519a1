"""Where ranks meet in a compiled module: two packed functions, and the rank that a thread runs.

    AllReduce(x)  ->  call_dps_packed("graphlower.all_reduce", x)

A module knows no rank. Whoever runs it registers the functions before a virtual machine is made,
and says for how long its thread takes part, and as whom:

    serve_collectives()
    with taking_part(collectives):
        machine["main"](*arguments)
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.tensor_parallel import ALL_GATHER, ALL_REDUCE, Collectives
from compiler.relax.importer import AttributeValue, FusedConverter
from compiler.relax.lean import import_tvm_ffi
from compiler.relax.raised import Raised

if TYPE_CHECKING:
    import tvm_ffi
    from tvm import relax

PACKED: Mapping[str, str] = {
    ALL_REDUCE: "graphlower.all_reduce",
    ALL_GATHER: "graphlower.all_gather",
}


class _Part(threading.local):
    """Who the thread is.

    Attributes:
        collectives: Its line to the others; None outside `taking_part`.
        raised: What a collective raised.
    """

    def __init__(self) -> None:
        self.collectives: Collectives | None = None
        self.raised = Raised()


_PART = _Part()


def collective_converters() -> dict[str, FusedConverter]:
    """Operator name -> converter, for a target whose runner calls modules in `taking_part`."""
    return {ALL_REDUCE: _all_reduce, ALL_GATHER: _all_gather}


@contextmanager
def taking_part(collectives: Collectives) -> Iterator[None]:
    """Modules that this thread runs inside are the rank of `collectives`.

    Raises:
        RunError: What a collective raised.
    """
    _PART.collectives = collectives
    try:
        with _PART.raised.restored():
            yield
    finally:
        _PART.collectives = None


@cache
def serve_collectives() -> None:
    """Register the two functions with the runtime, once a process."""
    ffi = import_tvm_ffi()
    ffi.register_global_func(PACKED[ALL_REDUCE], _served(lambda line: line.all_reduce))
    ffi.register_global_func(PACKED[ALL_GATHER], _served(lambda line: line.all_gather))


_Exchange = Callable[[np.ndarray], np.ndarray]


def _served(
    chosen: Callable[[Collectives], _Exchange],
) -> "Callable[[tvm_ffi.Tensor, tvm_ffi.Tensor], None]":
    def serve(given: "tvm_ffi.Tensor", result: "tvm_ffi.Tensor") -> None:
        assert _PART.collectives is not None, "a rank's module runs outside of `taking_part`"
        with _PART.raised.kept():
            np.from_dlpack(result)[...] = chosen(_PART.collectives)(np.from_dlpack(given))

    return serve


def _all_reduce(
    builder: "relax.BlockBuilder",
    inputs: "Sequence[relax.Expr]",
    _attributes: Mapping[str, AttributeValue],
) -> "relax.Expr":
    return _called(builder, ALL_REDUCE, inputs[0], times=1)


def _all_gather(
    builder: "relax.BlockBuilder",
    inputs: "Sequence[relax.Expr]",
    attributes: Mapping[str, AttributeValue],
) -> "relax.Expr":
    ways = attributes["ways"]
    assert isinstance(ways, int), f"ways is {ways!r}"
    return _called(builder, ALL_GATHER, inputs[0], times=ways)


def _called(
    builder: "relax.BlockBuilder", operator: str, given: "relax.Expr", *, times: int
) -> "relax.Expr":
    """A call whose result has `times` the last axis."""
    from tvm import relax, tirx

    x = given if isinstance(given, relax.Var) else builder.emit(given)
    assert isinstance(x.ty, relax.TensorType), f"{x} is no tensor"
    assert isinstance(x.ty.shape, relax.ShapeExpr), f"the shape of {x} is not static"
    *batch, width = x.ty.shape.values
    assert isinstance(width, tirx.IntImm), f"the length {width} is not static"
    out = relax.TensorType([*batch, int(width.value) * times], str(x.ty.dtype))
    return relax.call_dps_packed(PACKED[operator], [x], out_ty=out)
