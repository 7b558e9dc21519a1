"""A pass tried on generated graphs, or on the one on which it failed before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.config import build_passes
from compiler.config.pass_list import read_options
from compiler.contracts.errors import ConfigError, raise_all
from compiler.contracts.pass_base import Pass
from compiler.contracts.progress import Progress
from compiler.pass_kit import Outcome, Tried, check_pass, try_pass
from compiler.pass_kit.counterexample import case_text, read_case
from compiler.pass_kit.earlier_passes import choices_of, plainest
from compiler.registry import load_pass
from compiler.yaml_source import Source, apply_overrides


@dataclass(frozen=True)
class TryResult:
    """What was found, and where the counterexample is, if there is one."""

    tried: Tried
    counterexample: Path | None


def named_pass(name: str, settings: Sequence[str], *, is_shown: bool = False) -> Pass:
    """The pass that a command line names.

    Args:
        name: A registered name, or `file.py:Class` from the current folder.
        settings: `option=value` items; values are YAML.
        is_shown: Whether it is only shown, so that an option that has to be given, and is one of
            several words, may be the first of them.

    Raises:
        CompilerError: There is no such pass, or it has no such option or value.
    """
    malformed = next((setting for setting in settings if "=" not in setting), None)
    if malformed is not None:
        message, hint = (
            f"'{malformed}' is not option=value",
            "write for example --set position=last",
        )
        raise ConfigError(message, where="--set", hint=hint, code="bad-override")
    if is_shown:
        settings = [*_first_words(name), *settings]
    source = apply_overrides(Source("command line", {}), settings)
    raise_all(source.errors)
    spec, errors = read_options(name, source.data, source, (), folder=Path.cwd())
    raise_all(errors)
    assert spec is not None, "options without errors"
    (rewriting,) = build_passes([spec], folder=Path.cwd())
    return rewriting


def _first_words(name: str) -> list[str]:
    """`option=word` for each option that is one of several words: its default, or the first."""
    kind = load_pass(name, base=Path.cwd(), where="command line")
    one = plainest(kind)
    return [] if one is None else [f"{word}={getattr(one, word)}" for word in choices_of(kind)]


def try_on_graphs(
    rewriting: Pass,
    *,
    graphs: int,
    seed: int,
    command: str,
    destination: Path,
    progress: Progress,
) -> TryResult:
    """Run a pass on generated blocks, and write the graph on which it fails, made small.

    Args:
        rewriting: The pass.
        graphs: How many blocks.
        seed: Of the first.
        command: What reproduces it, less the file; stands in the file.
        destination: The file to write where it fails.
        progress: Told of each finished block.
    """
    tried = try_pass(
        rewriting,
        graphs=graphs,
        seed=seed,
        watch=lambda done: progress.update(done, graphs, "graphs"),
    )
    if tried.failure is None:
        return TryResult(tried, None)
    remarks = [
        f"'{rewriting.name}' {tried.failure.finding.said}",
        f"again: {command} --reproduce {destination}",
    ]
    partial = destination.with_name(f".{destination.name}.partial")
    partial.write_text(case_text(tried.failure.case, remarks=remarks), encoding="utf-8")
    partial.replace(destination)
    return TryResult(tried, destination)


def try_again(rewriting: Pass, file: Path) -> Outcome:
    """Run a pass on the graph of a file that `try_on_graphs` wrote.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    return check_pass(rewriting, read_case(file))
