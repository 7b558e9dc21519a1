"""What one `compare` was asked for, and what all of its parts read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from compiler.config import BuildConfig, CompareLimits
from compiler.contracts.comparison import Level
from compiler.contracts.errors import ConfigError
from compiler.contracts.runner import Runner
from compiler.stages.observe import ALL_POINTS, LAYER_POINTS
from compiler.workflows.comparing.inputs import InputOptions
from compiler.workflows.comparing.targets import TargetChoice, TargetOpener

Result = TypeVar("Result")


@dataclass(frozen=True)
class CompareRequest:
    """What is to be compared, and how.

    Attributes:
        targets: The reference first, unless `against` is it.
        inputs: What is read.
        inputs_file: Saved inputs to read in their place.
        level: What is compared besides logits.
        against: Saved outputs that are the reference.
        save: Where to save the outputs of the first target.
        text: A text whose perplexity is measured.
        is_ladder: Whether to climb from the reference to the last target, step by step.
        is_semantic: Whether to check each target without a reference.
        allows_missing: Whether a target that cannot run here is left out of the verdict.
    """

    targets: tuple[TargetChoice, ...]
    inputs: InputOptions = field(default_factory=InputOptions)
    inputs_file: Path | None = None
    level: Level = "end-to-end"
    against: Path | None = None
    save: Path | None = None
    text: str | None = None
    is_ladder: bool = False
    is_semantic: bool = False
    allows_missing: bool = False

    @property
    def is_against_file(self) -> bool:
        """Whether the reference is a file of saved outputs."""
        return self.against is not None or self.targets[0].file is not None

    @property
    def candidates(self) -> tuple[TargetChoice, ...]:
        """What is held against the reference."""
        return self.targets if self.against is not None else self.targets[1:]


def refuse_contradictions(request: CompareRequest) -> None:
    """Refuse what its own targets make impossible, before anything is read or run.

    Raises:
        ConfigError: A file would have to run, or there are no two things to compare.
    """
    is_live = any(choice.file is None for choice in request.candidates)
    is_alone_enough = request.against or request.save or request.is_semantic
    sides = [*request.targets, *_file_choices(request.against)]
    if len(request.targets) < (1 if is_alone_enough else 2) or len(set(sides)) < len(sides):
        named = ",".join(str(choice) for choice in request.targets)
        raise _usage(f"'{named}' does not name two different targets")
    if request.save is not None and request.is_against_file:
        raise _usage("--save keeps what the reference says, and that is a file already")
    if request.is_ladder and (request.is_against_file or not is_live):
        raise _usage("--ladder leads from a target that runs here to another one")
    if request.text is not None and (request.is_against_file or not is_live):
        raise _usage("--text takes the perplexity of two targets that run here")
    if request.level != "end-to-end" and not request.candidates and request.save is None:
        raise _usage(f"--level {request.level} compares two targets")


def _file_choices(path: Path | None) -> list[TargetChoice]:
    return [] if path is None else [TargetChoice("", file=path)]


def _usage(message: str) -> ConfigError:
    hint = "write the reference, then what to hold against it: --targets torch,llvm"
    return ConfigError(message, where="--targets", hint=hint, code="usage")


@dataclass(frozen=True)
class CompareRun:
    """What every part of one comparison reads.

    Attributes:
        config: The model.
        request: What was asked for.
        opener: Opens its targets.
        text: Tokens of the text whose perplexity is measured; None without one.
    """

    config: BuildConfig
    request: CompareRequest
    opener: TargetOpener
    text: tuple[int, ...] | None = None

    @property
    def limits(self) -> CompareLimits:
        """What passes."""
        return self.config.compare

    @property
    def points(self) -> frozenset[str]:
        """The tap points of the level."""
        return ALL_POINTS if self.request.level == "tap" else LAYER_POINTS

    @property
    def has_taps(self) -> bool:
        """Whether more than logits is compared."""
        return self.request.level != "end-to-end"

    def on(self, choice: TargetChoice, work: Callable[[Runner], Result]) -> Result:
        """Open a target, work on it, close it."""
        runner = self.opener.open(choice)
        try:
            return work(runner)
        finally:
            runner.close()
