"""Phases of lowering that every TVM target has: operators to fused kernels, kernels to calls.

TVM's default CPU pipeline neither fuses nor schedules; a target puts its own phases around these.
"""

import tvm
from tvm import relax


def fused_kernels() -> list[tvm.transform.Pass]:
    """What is still an operator becomes TIR, and neighbours are fused."""
    return [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]


def executable_calls() -> list[tvm.transform.Pass]:
    """Calls of kernels become calls that a virtual machine makes, in memory that is planned."""
    return [
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
    ]
