"""`tvm_vacc`: the accelerator, as far as it is known; registered like any package's target."""

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError, CompilerErrors, TargetError
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
from targets.vacc.constraints import OPTIONS, RECORDED_OPTIONS, model_errors, option_errors
from targets.vacc.device import DeviceProfile, profile_names, read_profile
from targets.vacc.drivers import load_driver, probed


class VaccTarget(Target):
    """Builds tile programs, and runs them by a driver: the emulator, or an SDK's."""

    name: ClassVar = "tvm_vacc"
    opens: ClassVar = "bundle"
    has_ranks: ClassVar = True
    compile_options: ClassVar = (*OPTIONS, *RECORDED_OPTIONS)

    def probe(self) -> Probe:
        """TVM, a linker for the host's part, the drivers, and the profiles."""
        has_tvm = all(importlib.util.find_spec(name) is not None for name in ("tvm", "tvm_ffi"))
        linker = find_linker()
        missing = [] if has_tvm else ["apache-tvm is not installed: pip install graphlower"]
        if linker is None:
            missing.append("there is no C compiler: install gcc, or pip install ziglang")
        drivers = probed()
        missing += [f"driver '{name}': {one}" for name, lacks in drivers.items() for one in lacks]
        ready = [name for name, lacks in drivers.items() if not lacks]
        return Probe(
            can_build=has_tvm and linker is not None,
            can_run=has_tvm and bool(ready),
            missing=tuple(missing),
            facts={
                "drivers": " ".join(ready),
                "profiles": " ".join(profile_names()),
                "tvm": metadata.version("apache-tvm") if has_tvm else "",
                "linker": " ".join(linker or ()),
            },
        )

    def constraints(
        self, options: TargetOptions, config: Mapping[str, object]
    ) -> list[CompilerError]:
        """Options, profile, dtype, multiples of the tile, heads and memory, all at once."""
        found = option_errors(options, target=self.name)
        try:
            profile = _profile(options)
            load_driver(_driver(options))
        except CompilerErrors as several:
            return [*found, *several.errors]
        except CompilerError as error:
            return [*found, error]
        return [*found, *model_errors(options, config, profile)]

    def passes(self, options: TargetOptions) -> tuple[PassChoice, ...]:
        """What the device takes whole, a head of whole tiles on each rank, and float16 weights."""
        multiple = _profile(options).matrix_tile * options.tensor_parallel
        return (
            PassChoice("fuse-attention"),
            PassChoice("fuse-rms-norm"),
            PassChoice("pad-vocabulary", {"multiple": multiple}),
            PassChoice("store-weights", {"dtype": "float16"}),
        )

    def fingerprint(self, options: TargetOptions) -> Mapping[str, object]:
        """The profile's figures, which tiles are chosen by, and the driver that compiles."""
        return {
            "profile": _profile(options).facts(),
            "driver": _driver(options),
            "options": {
                key: options.compile[key] for key in RECORDED_OPTIONS if key in options.compile
            },
        }

    def unsupported(self, program: Program) -> tuple[Skip, ...]:
        """Inputs of symbolic shape: tiles are of one shape."""
        return tuple(
            Skip(spec.name, f"its shape {spec.shape} is symbolic; 'plan-kv-cache' makes it static")
            for spec in program.symbolic_inputs()
        )

    def lower(self, program: Program, options: TargetOptions, folder: Path) -> Lowered:
        """Write the host's library, a tile program for each partition, and what is said of them.

        Raises:
            TargetError: The program cannot be lowered, or falls back where `strict` refuses it.
            MachineLacks: TVM or a linker is missing.
        """
        from targets.vacc.lower import write_phase

        facts = write_phase(
            program,
            folder,
            profile=_profile(options),
            driver=load_driver(_driver(options)),
            is_strict=options.compile.get("strict") is True,
        )
        return Lowered(params=program.parameters(), facts={**self.fingerprint(options), **facts})

    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        """Open a bundle with the driver that the environment names, or the emulator.

        Args:
            model: A bundle.
            threads: Ignored: how a driver computes is its own.
            variant: There is none.

        Raises:
            MachineLacks: The driver cannot run here.
            TargetError: Given something else than a bundle.
        """
        del threads, variant
        if not isinstance(model, Bundle):
            raise TargetError(f"target '{self.name}' opens bundles, not {type(model).__name__}")
        from targets.vacc.ranks import open_vacc_ranks
        from targets.vacc.runner import VaccRunner

        return open_vacc_ranks(model) if model.ranks > 1 else VaccRunner(model)


def _profile(options: TargetOptions) -> DeviceProfile:
    return read_profile(options.compile, place=options.places.get("backend.compile.profile", ""))


def _driver(options: TargetOptions) -> str:
    """Who compiles partitions; the environment does not decide what is built."""
    named = options.compile.get("driver")
    return named if isinstance(named, str) else "emulator"
