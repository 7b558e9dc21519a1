"""Program -> shared library, in one function; imported only where something is built."""

from pathlib import Path

from compiler.contracts.program import Program
from compiler.relax import import_tvm, relax_from_program
from compiler.relax.link import link_shared
from targets.llvm.features import CpuFeatures, llvm_target


def write_library(program: Program, library: Path, *, features: CpuFeatures, threads: int) -> None:
    """Import, lower and link; equal programs, features and threads give equal bytes.

    Raises:
        MachineLacks: TVM or a linker is missing.
        TargetError: TVM's importer lacks an operator.
    """
    tvm = import_tvm()
    from compiler.relax.cache_writes import join_cache_writes
    from compiler.relax.collectives import collective_converters
    from targets.llvm.fused import fused_converters
    from targets.llvm.pipeline import pipeline
    from targets.llvm.row_kernels import RowKernels

    kernels = RowKernels(features)
    fused = {**fused_converters(kernels), **collective_converters()}
    module = relax_from_program(join_cache_writes(program), fused=fused)
    executable = tvm.compile(
        module,
        target=tvm.target.Target(llvm_target(features, threads=threads)),
        relax_pipeline=pipeline(kernels, threads=threads),
    )
    executable.export_library(str(library), fcompile=link_shared)
