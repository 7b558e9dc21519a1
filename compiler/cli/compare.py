"""`compare`: targets against a reference, on equal inputs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.atomic_file import check_place
from compiler.cli.compare_tables import print_report
from compiler.contracts.comparison import Report
from compiler.contracts.errors import EXIT_CHECK_FAILED, ConfigError
from compiler.terminal import Terminal, plain

if TYPE_CHECKING:
    from compiler.config import BuildConfig
    from compiler.workflows.comparing.inputs import InputOptions
    from compiler.workflows.comparing.targets import TargetChoice

# Taps are as many as calls times layers times points.
_TOKENS, _TOKENS_BY_TAP = 16, 4
_REFERENCE = "torch"
# What says how targets of a YAML are compared; a bundle by itself has no use for it.
_OF_A_YAML = (
    "targets",
    "inputs",
    "prompts",
    "tokens",
    "text",
    "save",
    "against",
    "ladder",
    "allow_missing",
    "overrides",
)


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Compare, and print what was found; exit 1 when anything is wrong, or nothing was compared."""
    _refuse_contradictions(options)
    _refuse_places(options)
    if options.yaml.is_dir():
        return _shown(_checked_bundle(options), options, terminal)
    return _shown(_compared(options, terminal), options, terminal)


def _compared(options: argparse.Namespace, terminal: Terminal) -> Report:
    """Everything that was asked for, of a YAML."""
    from compiler.config import load_config
    from compiler.text import read_text
    from compiler.workflows.compare import compare
    from compiler.workflows.comparing.request import CompareRequest

    inputs = _inputs(options)
    text = None
    if options.text is not None:
        text = read_text(options.text, where="--text", hint="name a UTF-8 file")
    config = load_config(options.yaml, overrides=options.overrides)
    targets = _targets(options, config)
    _refuse_files(options, targets)
    request = CompareRequest(
        targets=targets,
        inputs=inputs,
        inputs_file=options.inputs,
        level=options.level,
        against=options.against,
        save=options.save,
        text=text,
        is_ladder=options.ladder,
        is_semantic=options.semantic,
        allows_missing=options.allow_missing,
    )
    with terminal.progress() as progress:
        return compare(config, request, progress=progress)


def _checked_bundle(options: argparse.Namespace) -> Report:
    """A bundle by itself: there is no model to hold it against."""
    from compiler.workflows.check_bundle import check_bundle

    if not options.semantic:
        raise ConfigError(
            "is a folder, expected a YAML",
            where=str(options.yaml),
            hint="name the YAML; or check a bundle by itself, with --semantic",
            code="usage",
        )
    given = [name for name in _OF_A_YAML if getattr(options, name) not in (None, False, [])]
    if given or options.level != "end-to-end":
        name = {"overrides": "set"}.get(given[0], given[0]) if given else "level"
        raise ConfigError(
            f"--{name.replace('_', '-')} is of no use to a bundle that is checked by itself",
            where=str(options.yaml),
            hint="leave it out, or name the YAML that the bundle was built from",
            code="usage",
        )
    return check_bundle(options.yaml, seed=options.seed)


def _shown(report: Report, options: argparse.Namespace, terminal: Terminal) -> int:
    passed = _is_saved_alone(options) if report.passed is None else report.passed
    if options.html is not None:
        from compiler.report import write_report

        title = ": ".join(filter(None, (options.yaml.stem, " against ".join(_sides(report)))))
        write_report(report, options.html, title=title)
    if terminal.is_json:
        terminal.json({"passed": passed, **_json(report)})
    else:
        print_report(report, terminal)
        terminal.line("passed" if passed else "failed")
    return 0 if passed else EXIT_CHECK_FAILED


def _sides(report: Report) -> list[str]:
    """Both names of the first comparison, the candidate first."""
    if not report.comparisons:
        return list(report.semantic)
    first = report.comparisons[0]
    return [first.candidate, first.reference]


def _is_saved_alone(options: argparse.Namespace) -> bool:
    """Whether saving is all that was asked for."""
    return options.save is not None and "," not in (options.targets or ",")


def _json(report: Report) -> dict[str, object]:
    found = plain(report)
    assert isinstance(found, dict), "a dataclass"
    for one, shown in zip(report.comparisons, found["comparisons"], strict=True):
        shown["passed"] = one.passed
    return found


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.tokens is not None and options.tokens < 1:
        raise ConfigError(f"--tokens is {options.tokens}", hint="at least 1", code="usage")
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}", hint="0 or more", code="usage")
    if options.inputs is not None and options.prompts is not None:
        raise ConfigError(
            "--inputs and --prompts both say what to read", hint="give one of them", code="usage"
        )


def _refuse_places(options: argparse.Namespace) -> None:
    """Refuse what could not be written at the end, or would replace what is read."""
    read = [options.yaml, options.inputs, options.prompts, options.text, options.against]
    read += [Path(name.strip()) for name in (options.targets or "").split(",") if name.strip()]
    taken = {path.resolve() for path in read if path is not None}
    for option in ("save", "html"):
        path = getattr(options, option)
        if path is None:
            continue
        if path.resolve() in taken:
            raise ConfigError(
                f"--{option} would replace a file that this command reads or writes",
                where=str(path),
                hint="name another file",
                code="usage",
            )
        check_place(path)
        taken.add(path.resolve())


def _refuse_files(options: argparse.Namespace, targets: "tuple[TargetChoice, ...]") -> None:
    """Saved outputs say what was read; nothing else can be compared with them."""
    file = next((choice.file for choice in targets if choice.file is not None), options.against)
    for option in ("inputs", "prompts", "tokens"):
        if file is not None and getattr(options, option) is not None:
            raise ConfigError(
                f"--{option} has no say where saved outputs are compared: they bring their tokens",
                where=str(file),
                hint=f"leave --{option} out",
                code="usage",
            )


def _targets(options: argparse.Namespace, config: "BuildConfig") -> "tuple[TargetChoice, ...]":
    """The reference, then what is held against it; those of the YAML where none are named."""
    from compiler.workflows.comparing.targets import parse_choice

    if options.targets is not None:
        return tuple(parse_choice(name.strip()) for name in options.targets.split(","))
    own = config.backend.type
    is_alone = options.against is not None or options.semantic
    return tuple(parse_choice(name) for name in ([own] if is_alone else [_REFERENCE, own]))


def _inputs(options: argparse.Namespace) -> "InputOptions":
    from compiler.workflows.comparing.inputs import DEFAULT_PROMPTS, InputOptions, read_prompts

    tokens = _TOKENS if options.level == "end-to-end" else _TOKENS_BY_TAP
    return InputOptions(
        prompts=DEFAULT_PROMPTS if options.prompts is None else read_prompts(options.prompts),
        tokens=options.tokens or tokens,
        seed=options.seed,
        has_random=options.prompts is None,
    )
