"""What a Relax function calls, for assertions."""

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import GlobalVar, Op

from targets.llvm.kernel_calls import static_shape


@dataclass(frozen=True)
class KernelCall:
    """One `call_tir` or `call_tir_inplace`; the shape is empty where it gives several tensors."""

    kernel: str
    arguments: tuple[relax.Expr, ...]
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The kernel's name without the number that tells shapes apart."""
        return self.kernel.rstrip("0123456789")


def operator_calls(module: tvm.IRModule) -> list[relax.Call]:
    """Every call of a Relax operator in `main`, in order."""
    found: list[relax.Call] = []

    def visit(node: object) -> None:
        if isinstance(node, relax.Call) and isinstance(node.op, Op):
            found.append(node)

    relax.analysis.post_order_visit(module["main"], visit)
    return found


def calls_of(module: tvm.IRModule, operator: str) -> list[relax.Call]:
    """The calls of `relax.<operator>`."""
    return [call for call in operator_calls(module) if call.op == Op.get(f"relax.{operator}")]


def operators(module: tvm.IRModule) -> set[str]:
    """The names of the operators that `main` calls, without `relax.`."""
    # TVM's reflection adds the attribute.
    names = [call.op.name for call in operator_calls(module)]  # pyright: ignore[reportAttributeAccessIssue]
    return {name.removeprefix("relax.") for name in names}


def kernel_calls(module: tvm.IRModule, operator: str = "call_tir") -> list[KernelCall]:
    """The kernels that `main` calls."""
    found: list[KernelCall] = []
    for call in calls_of(module, operator):
        kernel, arguments = call.args[0], call.args[1]
        assert isinstance(kernel, GlobalVar)
        assert isinstance(arguments, relax.Tuple)
        shape = static_shape(call) if isinstance(call.ty, relax.TensorType) else ()
        found.append(KernelCall(kernel.name_hint, tuple(arguments.fields), shape))
    return found


def name_of(value: relax.Expr) -> str:
    """The name of a variable."""
    assert isinstance(value, relax.Var)
    return value.name
