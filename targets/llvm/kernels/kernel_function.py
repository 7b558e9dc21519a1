"""The beginning and the end of every kernel's function."""

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T


def begin(name: str) -> None:
    """Emit the name and the attributes: scheduled already (dlight's mark), arguments disjoint."""
    T.func_name(name)
    T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})


def finished(builder: IRBuilder) -> PrimFunc:
    """The function that was built."""
    func = builder.get()
    assert isinstance(func, PrimFunc)
    return func
