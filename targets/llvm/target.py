"""`tvm_llvm`: any CPU, through TVM and LLVM; the reference target among those that use TVM."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError, ConfigError, TargetError
from compiler.contracts.pass_base import Skip
from compiler.contracts.program import Program
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import (
    Lowered,
    PassChoice,
    Probe,
    ProgramModel,
    Target,
    TargetOptions,
)
from compiler.contracts.weights import CheckpointRef
from compiler.relax.link import find_linker
from targets.llvm.features import CpuFeatures, detect, from_names, has_tiles

LIBRARY = "module.so"
_STORAGE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Of a model of dtype int8: what its other matrices are stored in, where the YAML does not say.
_BESIDE_INT8 = "bf16"
# Options of the accelerator that existing files carry; this target has no use for them.
_FOREIGN_OPTIONS = ("data_type", "gather_data_vccl_dsp_enable")
_OPTIONS = ("features", "threads")


class LLVMTarget(Target):
    """Builds and runs on this machine's CPU, or for another by `backend.compile.features`."""

    name: ClassVar = "tvm_llvm"
    opens: ClassVar = "bundle"
    compile_options: ClassVar = (*_OPTIONS, *_FOREIGN_OPTIONS)
    has_ranks: ClassVar = True
    has_slots: ClassVar = True

    def probe(self) -> Probe:
        """TVM, its runtime, and a linker."""
        has_tvm = all(importlib.util.find_spec(name) is not None for name in ("tvm", "tvm_ffi"))
        linker = find_linker()
        missing = [] if has_tvm else ["apache-tvm is not installed: pip install graphlower"]
        if linker is None:
            missing.append("there is no C compiler: install gcc, or pip install ziglang")
        return Probe(
            can_build=has_tvm and linker is not None,
            can_run=has_tvm,
            missing=tuple(missing),
            facts={"features": " ".join(detect().flags), "linker": " ".join(linker or ())},
        )

    def constraints(
        self, options: TargetOptions, config: Mapping[str, object]
    ) -> list[CompilerError]:
        """Unknown compile options, features or thread counts."""
        del config
        found: list[CompilerError] = []
        for key in options.compile:
            place = options.places.get(f"backend.compile.{key}")
            if key in _FOREIGN_OPTIONS:
                continue
            if key not in _OPTIONS:
                found.append(
                    ConfigError(
                        f"target '{self.name}' has no compile option '{key}'",
                        where=place,
                        hint="its options are 'features' and 'threads'",
                        code="unknown-key",
                    )
                )
                continue
            try:
                _features(options) if key == "features" else _threads(options)
            except ConfigError as error:
                found.append(ConfigError(error.message, where=place, hint=error.hint))
        return found

    def passes(self, options: TargetOptions) -> tuple[PassChoice, ...]:
        """What kernels take whole as one node each, and weights and caches as they are stored.

        The cache is stored in what floats are stored in. Where there are tiles (AMX), weights lie
        in them, and products of many rows take 16-bit activations, which the graph then says.
        """
        dtype = _STORAGE[_float_dtype(options)]
        stored = {"dtype": dtype}
        tiled = ()
        if _uses_tiles(options):
            tiled = (PassChoice("round-activations", stored), PassChoice("pack-weights"))
        return (
            PassChoice("fuse-attention"),
            PassChoice("fuse-rms-norm"),
            PassChoice("fuse-rotary"),
            PassChoice("fuse-silu-mul"),
            PassChoice("store-weights", stored),
            *((PassChoice("store-kv-cache", stored),) if dtype != "float32" else ()),
            *tiled,
        )

    def fingerprint(self, options: TargetOptions) -> Mapping[str, object]:
        """The CPU level and threads, declared or found."""
        features = _features(options)
        return {
            "arch": features.arch,
            "features": list(features.flags),
            "threads": _threads(options),
        }

    def unsupported(self, program: Program) -> tuple[Skip, ...]:
        """Inputs of symbolic shape: every kernel here is compiled for one shape."""
        return tuple(
            Skip(spec.name, f"its shape {spec.shape} is symbolic; 'plan-kv-cache' makes it static")
            for spec in program.symbolic_inputs()
        )

    def lower(self, program: Program, options: TargetOptions, folder: Path) -> Lowered:
        """Write `module.so`: a Relax executable with its kernels; weights stay parameters.

        Raises:
            TargetError: The program has operators or shapes that cannot be lowered.
            MachineLacks: TVM or a linker is missing.
        """
        from targets.llvm.lower import write_library

        features, threads = _features(options), _threads(options)
        write_library(program, folder / LIBRARY, features=features, threads=threads)
        facts = {**self.fingerprint(options), "library": LIBRARY}
        return Lowered(params=program.parameters(), facts=facts)

    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        """Open a bundle in a process that loads TVM's runtime alone.

        Raises:
            MachineLacks: This CPU lacks what the bundle was built for.
            TargetError: Given something else than a bundle.
        """
        if not isinstance(model, Bundle):
            raise TargetError(f"target '{self.name}' opens bundles, not {type(model).__name__}")
        if model.ranks > 1:
            from targets.llvm.ranks import open_llvm_ranks

            return open_llvm_ranks(model, threads=threads)
        from targets.llvm.runner import LLVMRunner

        return LLVMRunner(model, threads=threads)

    def open_lowered(self, model: ProgramModel, options: TargetOptions) -> Runner:
        """Run programs by TVM's own operators, in this process.

        Raises:
            TargetError: A program has what cannot be lowered.
            MachineLacks: TVM is missing.
        """
        problems = [problem for program in model.programs for problem in self.unsupported(program)]
        if problems:
            raise TargetError(problems[0].reason, where=problems[0].node)
        from targets.llvm.lowered import LoweredRunner

        return LoweredRunner(model, features=_features(options), threads=_threads(options))


def _uses_tiles(options: TargetOptions) -> bool:
    """Whether products are AMX's; of features that are refused elsewhere, none are used."""
    # The build cuts weights for ranks behind the target's passes, and a packed one cannot be cut.
    if options.tensor_parallel > 1 or _STORAGE[_float_dtype(options)] != "bfloat16":
        return False
    try:
        return has_tiles(_features(options))
    except ConfigError:
        return False


def _float_dtype(options: TargetOptions) -> str:
    """What the matrices that are no integers are stored in."""
    return (options.compute_dtype or _BESIDE_INT8) if options.dtype == "int8" else options.dtype


def _features(options: TargetOptions) -> CpuFeatures:
    names = options.compile.get("features")
    if names is None:
        return detect()
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"features is {names!r}, expected a list such as [avx2, fma]")
    return from_names(names)


def _threads(options: TargetOptions) -> int:
    threads = options.compile.get("threads")
    if threads is None:
        return os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads is {threads!r}, expected a positive integer")
    return threads
