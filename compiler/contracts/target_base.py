"""What a target is: it says what it can do, lowers programs, and opens what it can run.

A target's module is imported to list and probe it: heavy libraries stay inside the methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError, TargetError
from compiler.contracts.pass_base import Skip
from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.quantization import Quantization
from compiler.contracts.runner import Runner, WindowedRunner
from compiler.contracts.weights import CheckpointRef

# The runners are here, too: the author of a target finds all that it takes in one place.
__all__ = [
    "Lowered",
    "OptionValue",
    "PassChoice",
    "Probe",
    "ProgramModel",
    "Runner",
    "Target",
    "TargetOptions",
    "WindowedRunner",
]

OptionValue = str | int | float | bool | None | Sequence[str]


@dataclass(frozen=True)
class Probe:
    """What a target can do on this machine; `missing` says what is lacking and how to get it."""

    can_build: bool
    can_run: bool
    missing: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class TargetOptions:
    """The part of the configuration that a target sees.

    Attributes:
        dtype: `fp32`, `bf16`, `fp16` or `int8` (`backend.dtype`).
        compute_dtype: What a model of dtype int8 keeps its other matrices and its cache in, and
            computes in as far as the target does so (`backend.compute_dtype`); empty: the target's
            own default.
        window: Prefill window P.
        context: KV cache positions C.
        batch: Prompts that decode takes at once, each with a cache of its own.
        tensor_parallel: Ranks; their programs are lowered one by one, and meet in the fused
            operators of `compiler.contracts.tensor_parallel`.
        align_qkv: Whether several ranks may hold one key and value head, where there are fewer
            heads than ranks (`frontend.model_kwargs.align_qkv`).
        quantize: `frontend.quantize`; None where the model is of floats.
        compile: `backend.compile`, the target's own options.
        places: Option path (`backend.compile.threads`) -> `file:line:column`, for errors.
    """

    dtype: str
    window: int
    context: int
    batch: int = 1
    tensor_parallel: int = 1
    align_qkv: bool = False
    compute_dtype: str = ""
    quantize: Quantization | None = None
    compile: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    places: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class PassChoice:
    """A pass by name, and its options."""

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])


@dataclass(frozen=True)
class ProgramModel:
    """Both phases of a model at any point of the pipeline, and the checkpoint of its weights."""

    programs: ProgramSet
    checkpoint: CheckpointRef


@dataclass(frozen=True)
class Lowered:
    """What `Target.lower` wrote: the parameters that the module takes, in order, and its facts."""

    params: tuple[str, ...]
    facts: Mapping[str, object]


class Target(ABC):
    """One backend. Stateless; made anew for each build."""

    name: ClassVar[str]
    # What `open` takes: "checkpoint", "program" or "bundle".
    opens: ClassVar[str]
    # What may follow the name in a comparison, besides nothing: `torch@bf16`. For a target that
    # opens programs the word after the @ is a pass, the last that has run.
    variants: ClassVar[tuple[str, ...]] = ()
    # Keys of `backend.compile` that it takes: what compares several targets by one YAML gives each
    # of them its own.
    compile_options: ClassVar[tuple[str, ...]] = ()
    # Whether it lowers a rank's program, AllReduce and AllGather included, and runs several.
    has_ranks: ClassVar[bool] = False
    # Whether its decode takes several prompts at once, and its runner has a slot for each.
    has_slots: ClassVar[bool] = False

    @abstractmethod
    def probe(self) -> Probe:
        """What can be done here, and what is missing."""

    def constraints(
        self, options: TargetOptions, config: Mapping[str, object]
    ) -> list[CompilerError]:
        """Every violation at once, from the options and the model's config.json alone.

        A target that builds bundles says what it asks of them; this one builds none.
        """
        del options, config
        return [
            TargetError(
                f"target '{self.name}' runs models, it does not build bundles",
                hint="compare with it: python -m compiler compare model.yaml "
                f"--targets {self.name},NAME",
            )
        ]

    def passes(self, options: TargetOptions) -> tuple[PassChoice, ...]:
        """The passes that it adds after the YAML's, by the registry's names."""
        del options
        return ()

    def fingerprint(self, options: TargetOptions) -> Mapping[str, object]:
        """What else decides its output (the CPU it found), in JSON; part of a bundle's digest."""
        del options
        return {}

    def unsupported(self, program: Program) -> tuple[Skip, ...]:
        """Nodes that it cannot lower, each with the reason."""
        del program
        return ()

    def lower(self, program: Program, options: TargetOptions, folder: Path) -> Lowered:
        """Compile one program into files in `folder`, deterministically.

        Raises:
            TargetError: This target lowers nothing.
        """
        del program, options, folder
        raise TargetError(f"target '{self.name}' runs models, it does not build bundles")

    @abstractmethod
    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        """Open what `opens` says for running.

        Args:
            model: Of the kind that `opens` names.
            threads: To compute with; None leaves it to the target.
            variant: One of `variants`; empty for the plain target.

        Raises:
            MachineLacks: The machine lacks what the model needs.
            TargetError: The model is of another kind than this target opens.
        """

    def open_lowered(self, model: ProgramModel, options: TargetOptions) -> Runner | None:
        """Open programs as this target's compiler reads them, before what it makes of them.

        A ladder tells by it the import's error from that of the target's own kernels.

        Args:
            model: After all passes, as `lower` gets its programs.
            options: As `lower` gets them.

        Returns:
            None: there is no such point that could run here.

        Raises:
            TargetError: The programs cannot be lowered.
        """
        del model, options
        return None
