"""Relax -> executable for a CPU: every phase by name, in order.

TVM's default CPU pipeline neither fuses nor schedules; this is its replacement, as one list. What
the kernels of this target do not cover is legalized, fused by TVM, and scheduled by
`schedule_rest`.
"""

from collections.abc import Callable

import tvm
from tvm import relax

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.default_schedule import schedule_rest
from targets.llvm.linears import lower_linears

ModulePass = Callable[[tvm.IRModule, tvm.transform.PassContext], tvm.IRModule]


def pipeline(features: CpuFeatures, *, threads: int) -> tvm.transform.Pass:
    """The whole lowering, for `tvm.compile(relax_pipeline=...)`."""

    @tvm.transform.module_pass(opt_level=0, name="LowerLinears")
    def linears(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return lower_linears(module, features)

    @tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
    def schedule(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return schedule_rest(module, features=features, threads=threads)

    return tvm.transform.Sequential(
        [
            # Products with stored weights go to our kernel while they still look like products.
            linears,
            relax.transform.DeadCodeElimination(),
            # Everything else becomes TIR, and neighbours are fused.
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            schedule,
            # Reshapes become views, calls write into given buffers.
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            # Activations share storage.
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ],
        name="graphlower.llvm",
    )
