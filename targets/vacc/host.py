"""The host's part of a phase -> a shared library: indices, positions, and what fell back.

The virtual machine in it calls partitions by name; the runner gives them when it opens the bundle.
"""

from pathlib import Path

import tvm
from tvm import relax

from compiler.relax.link import link_shared

_PIPELINE = tvm.transform.Sequential(
    [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ],
    name="graphlower.vacc.host",
)


def write_library(module: tvm.IRModule, library: Path) -> None:
    """Compile and link; equal modules give equal bytes, on any x86-64.

    Raises:
        MachineLacks: There is no linker.
    """
    target = tvm.target.Target({"kind": "llvm"})
    executable = tvm.compile(module, target=target, relax_pipeline=_PIPELINE)
    executable.export_library(str(library), fcompile=link_shared)
