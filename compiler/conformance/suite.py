"""The suite: every check by name, in order, on one target.

What a target raises is what its check reports, whatever it is: the code is a stranger's.
"""

import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compiler import registry
from compiler.config import Dtype
from compiler.conformance.behaviour import SEMANTIC, Semantics, check_errors, check_taps
from compiler.conformance.declarations import check_constraints, check_probe
from compiler.conformance.files import check_determinism, check_reload
from compiler.conformance.models import BIASED, BLOCKS, Block
from compiler.conformance.numbers import check_block, check_model, check_rewind, check_windows
from compiler.conformance.results import (
    CheckResult,
    ConformanceReport,
    Outcome,
    failed,
    not_applicable,
)
from compiler.conformance.subject import DTYPES, Subject
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.contracts.progress import Progress
from compiler.workflows.describe_targets import able_target

_Check = Callable[[Subject], Outcome]


@dataclass(frozen=True)
class SuiteRequest:
    """What to run.

    Attributes:
        target: Name or alias.
        only: Names of checks; empty for all.
        seed: Of weights and tokens.
        keep: A new folder for models and bundles, which stays; None: they go.
    """

    target: str
    only: tuple[str, ...] = ()
    seed: int = 0
    keep: Path | None = None


def check_names() -> tuple[str, ...]:
    """Every check, in order."""
    return tuple(_checks())


def run_suite(request: SuiteRequest, *, progress: Progress) -> ConformanceReport:
    """Try one target.

    Args:
        request: What to run.
        progress: Told of each finished check.

    Raises:
        ConfigError: There is no such target or check, or `keep` is in the way.
        MachineLacks: The target cannot build or run here: nothing was tried.
    """
    checks = _chosen(request.only)
    target = able_target(request.target)
    name = registry.resolve_target(request.target)
    blocks = [block for block in BLOCKS if block.name in checks or _is_needed(block, checks)]
    results: list[CheckResult] = []
    with _folder(request.keep) as folder:
        subject = Subject(
            target,
            name=name,
            folder=folder,
            seed=request.seed,
            blocks=blocks,
            dtypes=[dtype for dtype in DTYPES if dtype in checks],
        )
        progress.start(f"testing {name}")
        for number, (one, check) in enumerate(checks.items(), start=1):
            results.append(_result(one, partial(check, subject)))
            progress.update(number, len(checks), "checks")
        dtype = _dtype_of(subject)
    return ConformanceReport(
        target=name,
        owner=registry.target_owner(name),
        dtype=dtype,
        reference=subject.reference,
        seed=request.seed,
        checks=tuple(results),
    )


def _checks() -> dict[str, _Check]:
    semantics = Semantics()
    return {
        "probe": check_probe,
        "constraints": check_constraints,
        "determinism": check_determinism,
        **{block.name: partial(_check_block, block) for block in BLOCKS},
        **{dtype: partial(_check_dtype, dtype) for dtype in DTYPES},
        "model": check_model,
        "windows": check_windows,
        "rewind": check_rewind,
        "reload": check_reload,
        **{name: partial(_check_semantic, semantics, name) for name in SEMANTIC},
        "errors": check_errors,
        "taps": check_taps,
    }


def _check_block(block: Block, subject: Subject) -> Outcome:
    return check_block(subject, block, subject.dtype)


def _check_semantic(semantics: Semantics, name: str, subject: Subject) -> Outcome:
    return semantics.check(subject, name)


def _check_dtype(dtype: Dtype, subject: Subject) -> Outcome:
    """A block in each dtype that is accepted: what constraints accept must build."""
    if not subject.builds:
        return not_applicable("it builds no bundles")
    errors = subject.refusals[dtype]
    if errors:
        return not_applicable(f"its constraints refuse it: {errors[0].message}")
    return check_block(subject, BIASED, dtype)


def _is_needed(block: Block, checks: dict[str, _Check]) -> bool:
    """Whether checks of another name are made on this block."""
    return block is BIASED and not {"determinism", *DTYPES}.isdisjoint(checks)


def _chosen(only: Sequence[str]) -> dict[str, _Check]:
    every = _checks()
    unknown = next((name for name in only if name not in every), None)
    if unknown is not None:
        near = registry.did_you_mean(unknown, every)
        guess = f"did you mean '{near}'? " if near else ""
        raise ConfigError(
            f"there is no check '{unknown}'",
            where="--only",
            hint=f"{guess}possible: {', '.join(every)}",
            code="unknown-name",
        )
    return {name: check for name, check in every.items() if not only or name in only}


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="graphlower-conformance-") as folder:
            yield Path(folder)
        return
    if keep.exists():
        raise ConfigError(
            "is there already", where=f"--keep {keep}", hint="name a new folder", code="usage"
        )
    keep.mkdir(parents=True)
    yield keep.absolute()


def _result(name: str, check: Callable[[], Outcome]) -> CheckResult:
    try:
        outcome = check()
    except CompilerError as error:
        outcome = failed(
            "it raised an error",
            expected="none",
            came=f"{type(error).__name__}: {error.message}",
            look_at="; ".join(filter(None, (error.where, error.hint))) or _raised_at(error),
        )
    except Exception as error:  # a stranger's code: what it raises is what the check reports
        outcome = failed(
            "it raised what is no CompilerError",
            expected="none, or a CompilerError that says what to do",
            came=f"{type(error).__name__}: {error}",
            look_at=_raised_at(error),
        )
    return CheckResult(
        name, outcome.status, outcome.said, outcome.expected, outcome.came, outcome.look_at
    )


def _raised_at(error: Exception) -> str:
    """The last places of its traceback, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return "\n".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)


def _dtype_of(subject: Subject) -> str:
    if not subject.builds:
        return ""
    return next((dtype for dtype, errors in _refusals(subject) if not errors), "")


def _refusals(subject: Subject) -> list[tuple[str, list[CompilerError]]]:
    """Nothing where asking raises: the check 'constraints' says so."""
    try:
        return list(subject.refusals.items())
    except Exception:  # a stranger's code: said by its check
        return []
