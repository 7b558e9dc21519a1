"""The host's part of a phase -> a shared library: indices, positions, and what fell back.

The virtual machine in it calls partitions by name; the runner gives them when it opens the bundle.
"""

from pathlib import Path

import tvm
from tvm import relax

from compiler.relax.link import link_shared
from compiler.relax.phases import executable_calls, fused_kernels

_PIPELINE = tvm.transform.Sequential(
    [
        *fused_kernels(),
        relax.transform.DeadCodeElimination(["main"]),
        *executable_calls(),
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
