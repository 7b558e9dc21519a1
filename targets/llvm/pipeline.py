"""Relax -> executable for a CPU: every phase by name, in order.

What the kernels of this target do not cover is legalized, fused by TVM, and scheduled by
`schedule_rest`.
"""

from collections.abc import Callable

import tvm
from tvm import relax

from compiler.relax.phases import executable_calls, fused_kernels
from targets.llvm.kernels.default_schedule import schedule_rest
from targets.llvm.linears import lower_linears
from targets.llvm.packed_linears import lower_packed_linears
from targets.llvm.row_kernels import RowKernels, choose_forms

ModulePass = Callable[[tvm.IRModule, tvm.transform.PassContext], tvm.IRModule]


def pipeline(kernels: RowKernels, *, threads: int) -> tvm.transform.Pass:
    """The whole lowering, for `tvm.compile(relax_pipeline=...)`."""

    @tvm.transform.module_pass(opt_level=0, name="LowerLinears")
    def linears(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return lower_linears(lower_packed_linears(module, kernels), kernels)

    @tvm.transform.module_pass(opt_level=0, name="ChooseForms")
    def forms(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return choose_forms(module, kernels)

    @tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
    def schedule(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return schedule_rest(module, features=kernels.features, threads=threads)

    return tvm.transform.Sequential(
        [
            # Products with stored weights go to our kernel while they still look like products.
            linears,
            # Our kernels over rows end with the last real token, and a norm adds its residual.
            forms,
            relax.transform.DeadCodeElimination(),
            *fused_kernels(),
            relax.transform.DeadCodeElimination(),
            schedule,
            *executable_calls(),
        ],
        name="graphlower.llvm",
    )
