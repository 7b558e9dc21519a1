"""TVM annotates `args` as an Expr and takes a sequence of them too."""

from collections.abc import Sequence

from tvm.ir import Call, Expr, GlobalVar
from tvm.relax.type import TensorType

def call_tir(
    gvar: GlobalVar, args: Expr | Sequence[Expr], out_ty: TensorType | list[TensorType]
) -> Call: ...
def call_tir_inplace(
    gvar: GlobalVar,
    args: Expr | Sequence[Expr],
    inplace_indices: int | list[int],
    out_ty: TensorType | list[TensorType],
) -> Call: ...
