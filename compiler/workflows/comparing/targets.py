"""What `--targets` names, and how each of it is opened.

    torch  torch@bf16  tvm_llvm  onnxruntime  onnxruntime@fold-mask  onnxruntime@trace  outputs.npz

A target that opens bundles gets the one of the configuration, built where it is not there; one that
opens programs gets those after all passes of the build, or after the one behind the @.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compiler import registry
from compiler.bundle_place import existing_bundle
from compiler.calibration_data import CalibrationSamples
from compiler.config import BuildConfig
from compiler.contracts.errors import ConfigError, MachineLacks, RunError
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import ProgramModel, Target
from compiler.contracts.weights import CheckpointRef
from compiler.pass_order import PlannedPass
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.behind_passes import rewritten
from compiler.workflows.build import build
from compiler.workflows.calibration import Calibrated
from compiler.workflows.frontend import enter
from compiler.workflows.pass_plan import passes_of
from compiler.workflows.plan import plan_build
from compiler.workflows.quantizing import calibrated, kept_as_floats, leaving_out
from compiler.workflows.samples import needs_samples, samples_of

TRACE = "trace"
SAVED_SUFFIX = ".npz"


@dataclass(frozen=True)
class TargetChoice:
    """One side of a comparison: a target and its variant, or a file of saved outputs."""

    name: str
    variant: str = ""
    file: Path | None = None

    def __str__(self) -> str:
        if self.file is not None:
            return self.file.name
        return f"{self.name}@{self.variant}" if self.variant else self.name


def parse_choice(text: str, *, where: str = "--targets") -> TargetChoice:
    """One item of `--targets`; aliases are resolved.

    Raises:
        ConfigError: No target has that name.
    """
    if text.endswith(SAVED_SUFFIX):
        return TargetChoice("", file=Path(text))
    name, at, variant = text.partition("@")
    if at and not variant:
        raise ConfigError(
            f"'{text}' ends with an @", where=where, hint=f"write {name}, or {name}@variant"
        )
    return TargetChoice(registry.resolve_target(name, where=where), variant)


def refusal(choice: TargetChoice) -> str | None:
    """Why a target cannot run here; None where it can.

    Raises:
        ConfigError: It has no such variant, or the target is not built yet.
    """
    try:
        target = registry.load_target(choice.name, where="--targets")()
    except MachineLacks as lacking:
        return lacking.message
    if choice.variant and target.opens != "program" and choice.variant not in target.variants:
        possible = ", ".join(f"{choice.name}@{one}" for one in target.variants)
        near = registry.did_you_mean(choice.variant, target.variants)
        guess = f"did you mean '{choice.name}@{near}'? " if near else ""
        raise ConfigError(
            f"target '{choice.name}' has no variant '{choice.variant}'",
            where="--targets",
            hint=f"{guess}possible: {possible}" if possible else f"write {choice.name}",
        )
    probe = target.probe()
    return None if probe.can_run else "; ".join(probe.missing)


def refuse_onnx(config: BuildConfig, choice: TargetChoice) -> None:
    """An .onnx file is no checkpoint that a target could read by itself.

    Raises:
        RunError: The target reads checkpoints, and the model is an .onnx file.
    """
    target = registry.load_target(choice.name)()
    if config.frontend.type == "onnx" and target.opens == "checkpoint":
        raise RunError(
            f"target '{target.name}' reads a Hugging Face checkpoint, not an .onnx file",
            where=config.place("frontend.type"),
            hint="take onnxruntime@trace for the reference: it runs the file's own graph",
        )


@dataclass
class TargetOpener:
    """Opens choices of one configuration; programs are traced once, bundles built once.

    Attributes:
        config: The model.
        checkpoint: Its located checkpoint.
        progress: Told of what is opened.
    """

    config: BuildConfig
    checkpoint: CheckpointRef
    progress: Progress
    _traced: ProgramSet | None = field(default=None, init=False)
    _passes: tuple[PlannedPass, ...] | None = field(default=None, init=False)
    _calibrated: Calibrated | None = field(default=None, init=False)
    _read: CalibrationSamples | None = field(default=None, init=False)

    def check(self, choice: TargetChoice) -> None:
        """Refuse what `open` would, before another target has run for minutes.

        Raises:
            RunError: The build has no such pass.
            CompilerError: What a build refuses before it works.
        """
        target = registry.load_target(choice.name)()
        if target.opens == "program":
            self.passes_until(choice.variant)
        if target.opens == "bundle":
            plan_build(self._built_by(target), self.checkpoint)

    def open(self, choice: TargetChoice) -> Runner:
        """A runner of this choice.

        Raises:
            RunError: No such pass.
            CompilerError: What building the bundle raises.
        """
        target = registry.load_target(choice.name)()
        self.progress.note(f"opening {self.config.name} with {choice}")
        if target.opens == "checkpoint":
            return target.open(self.checkpoint, variant=choice.variant)
        if target.opens == "program":
            return self.open_program(choice, self.passes_until(choice.variant))
        return target.open(open_bundle(self._bundle(target)), variant=choice.variant)

    def open_program(self, choice: TargetChoice, passes: Sequence[PlannedPass]) -> Runner:
        """A runner of the programs after these passes."""
        return registry.load_target(choice.name)().open(self._after(passes))

    def open_lowered(self, choice: TargetChoice) -> Runner | None:
        """A runner of the programs as the target's compiler reads them; None: it has none."""
        target = registry.load_target(choice.name)()
        return target.open_lowered(self._after(self.passes()), self.config.target_options())

    def _after(self, passes: Sequence[PlannedPass]) -> ProgramModel:
        programs = rewritten(self._copy(), passes)
        quantize = self.config.frontend.quantize
        if quantize is None or not quantize.is_calibrated:
            return ProgramModel(programs, self.checkpoint)
        if self._calibrated is None:
            # GPTQ's codes are those for the programs behind all passes, as the build has them.
            final = rewritten(self._copy(), self.passes())
            self._calibrated = calibrated(
                self.config, self.checkpoint, final, self._samples(), progress=self.progress
            )
        return ProgramModel(self._calibrated.applied(programs), self._calibrated.checkpoint)

    def _samples(self) -> CalibrationSamples | None:
        if self._read is None and needs_samples(self.config):
            self._read = samples_of(self.config, self.checkpoint, self.progress.note)
        return self._read

    def passes(self) -> tuple[PlannedPass, ...]:
        """The passes of the build, the target's last; it need not be able to build here."""
        if self._passes is None:
            kept = kept_as_floats(
                self.config, self.checkpoint, self._samples(), progress=self.progress
            )
            self._passes = passes_of(leaving_out(self.config, kept))
        return self._passes

    def passes_until(self, variant: str) -> tuple[PlannedPass, ...]:
        """The passes up to the last of that name; all for an empty one, none for the trace.

        Raises:
            RunError: The build has no such pass.
        """
        passes = self.passes()
        names = [planned.rewrite.name for planned in passes]
        if not variant:
            return passes
        if variant == TRACE:
            return ()
        if variant in names:
            return passes[: len(names) - names[::-1].index(variant)]
        near = registry.did_you_mean(variant, names)
        guess = f"did you mean '{near}'? " if near else ""
        raise RunError(
            f"the build of {self.config.name} has no pass '{variant}'",
            where="--targets",
            hint=f"{guess}write {TRACE}, or one of: {', '.join(dict.fromkeys(names))}",
        )

    def walked(self) -> Iterator[tuple[PlannedPass, tuple[set[str], set[str]]]]:
        """Every pass, and the dtypes of all weights before and after it."""
        programs = self._copy()
        before = _dtypes(programs)
        for planned in self.passes():
            for program in programs:
                if program.phase in planned.rewrite.phases:
                    planned.rewrite.run(program)
                    program.prune_parameters()
            after = _dtypes(programs)
            yield planned, (before, after)
            before = after

    def _copy(self) -> ProgramSet:
        """The programs before the first pass, to be rewritten."""
        if self._traced is None:
            self._traced = enter(replace(self.config, verify="off"), self.checkpoint).programs
        return ProgramSet({phase: one.copy() for phase, one in self._traced.programs.items()})

    def _built_by(self, target: Target) -> BuildConfig:
        """The configuration with this target for its backend, and of its options its own.

        A target that serves a prompt at a time is built so: a comparison reads no more.
        """
        config = self.config
        if target.name == config.backend.type:
            return config
        options = config.backend.compile.items()
        own = {key: value for key, value in options if key in target.compile_options}
        backend = config.backend.model_copy(update={"type": target.name, "compile": own})
        if target.has_slots:
            return replace(config, backend=backend)
        shape = config.frontend.shape.model_copy(update={"batch": 1})
        frontend = config.frontend.model_copy(update={"shape": shape})
        return replace(config, backend=backend, frontend=frontend)

    def _bundle(self, target: Target) -> Path:
        """The user's bundle where it is the one of this configuration; else one of our own."""
        if target.name != self.config.backend.type:
            self._note_left_out(target)
            return self._own(self._built_by(target), Path(target.name, self.config.name))
        theirs = self.config.workspace_path / self.config.name
        standing = existing_bundle(theirs)
        digest = plan_build(self.config, self.checkpoint).digest
        if standing is None or standing.manifest.digest == digest:
            return build(self.config, progress=self.progress).bundle
        return self._own(self.config, Path(self.config.name))

    def _note_left_out(self, target: Target) -> None:
        written = self.config.backend.compile
        options = ", ".join(key for key in written if key not in target.compile_options)
        if options:
            self.progress.note(
                f"{target.name} is built without backend.compile ({options}): those are options of "
                f"{self.config.backend.type}"
            )

    def _own(self, config: BuildConfig, name: Path) -> Path:
        output = self.config.workspace_path / "compare" / name
        return build(
            replace(config, evaluate=None), output=output, force=True, progress=self.progress
        ).bundle


def _dtypes(programs: ProgramSet) -> set[str]:
    return {weight.dtype for program in programs for weight in program.weights.values()}


def missing_reference(choice: TargetChoice, reason: str) -> MachineLacks:
    """The error for a reference that cannot run here."""
    return MachineLacks(
        f"target '{choice.name}' cannot run here: {reason}",
        where="--targets",
        hint="install what is missing, or name another reference first",
    )
