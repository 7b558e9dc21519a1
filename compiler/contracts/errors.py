"""What goes wrong, said so that a user can mend it: what, where, and what to do.

A user's mistake, a damaged file or a machine that lacks something raises a `CompilerError`; the
command line prints it without a traceback and exits with its `exit_code`. Our own bugs stay
assertions with their tracebacks.
"""

from collections.abc import Sequence
from typing import ClassVar

EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_MACHINE_LACKS = 3
EXIT_OUR_BUG = 70
EXIT_INTERRUPTED = 130


class CompilerError(Exception):
    """One thing that is wrong.

    Args:
        message: What is wrong, in one sentence, with the offending value in it.
        where: The place: `model.yaml:9:3`, a file and tensor, or a node's name.
        hint: What to do about it.
        code: A stable word for machines (`unknown-key`); each class has its own default.
    """

    exit_code: int = EXIT_BAD_INPUT
    default_code: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.code = code or self.default_code

    def __reduce__(self) -> tuple[object, ...]:
        """Carry every field through pickling: errors cross process boundaries in a build."""
        return (_revive, (type(self), self.message, self.where, self.hint, self.code))

    def __str__(self) -> str:
        text = self.message if self.where is None else f"{self.where}: {self.message}"
        return text if self.hint is None else f"{text}\n  hint: {self.hint}"


def _revive(
    kind: type[CompilerError], message: str, where: str | None, hint: str | None, code: str
) -> CompilerError:
    return kind(message, where=where, hint=hint, code=code)


class ConfigError(CompilerError):
    """The YAML, or an option on the command line, says something that cannot be built."""

    default_code = "config"


class CheckpointError(CompilerError):
    """The checkpoint is damaged, disagrees with itself, or is of a kind that is refused."""

    default_code = "checkpoint"


class DatasetError(CompilerError):
    """Calibration data is missing, damaged, of another form, or less than is asked for."""

    default_code = "dataset"


class TraceError(CompilerError):
    """The model could not be traced to a graph."""

    default_code = "trace"


class PassError(CompilerError):
    """A pass cannot stand where it stands, or did something that it did not declare."""

    default_code = "pass"


class TargetError(CompilerError):
    """A target refuses a program or a bundle."""

    default_code = "target"


class BundleError(CompilerError):
    """A bundle is damaged, of another version, or in the way."""

    default_code = "bundle"


class RunError(CompilerError):
    """A prompt or an option that a bundle cannot run: too long, no chat template, ..."""

    default_code = "run"


class MachineLacks(CompilerError):  # reads as the sentence that it is
    """The machine lacks something that the work needs; the message says what and how to get it."""

    exit_code = EXIT_MACHINE_LACKS
    default_code = "machine-lacks"


class CheckFailed(CompilerError):  # reads as the sentence that it is
    """A check ran to its end and found a difference."""

    exit_code = EXIT_CHECK_FAILED
    default_code = "check-failed"


class CompilerErrors(CompilerError):
    """Several errors found in one go; `errors` holds them in the order of the file."""

    default_code = "several"

    def __init__(self, errors: Sequence[CompilerError]) -> None:
        assert errors, "an empty CompilerErrors reports nothing"
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))
        self.exit_code = max(error.exit_code for error in self.errors)

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the parts through pickling."""
        return (CompilerErrors, (self.errors,))

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def raise_all(errors: Sequence[CompilerError]) -> None:
    """Raise nothing, the one error, or all of them together."""
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    raise CompilerErrors(errors)
