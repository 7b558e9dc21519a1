"""`targets`: list them, ask one what it can do here, try one on what every target must do."""

import argparse
from typing import TYPE_CHECKING

from compiler.contracts.errors import EXIT_CHECK_FAILED, EXIT_MACHINE_LACKS, ConfigError
from compiler.terminal import Terminal, plain

if TYPE_CHECKING:
    from compiler.conformance import CheckResult, ConformanceReport
    from compiler.workflows.describe_targets import TargetSummary


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run the action that `options` name."""
    match options.action:
        case "list":
            return _list(terminal)
        case "probe":
            return _probe(options, terminal)
        case "test":
            return _test(options, terminal)
        case _:
            raise AssertionError(f"the parser let through {options.action}")


def _list(terminal: Terminal) -> int:
    from compiler.workflows.describe_targets import list_targets

    summaries = list_targets()
    if terminal.is_json:
        terminal.json({"targets": [plain(summary) for summary in summaries]})
        return 0
    headers = ("target", "alias", "owner", "opens", "builds here", "runs here", "ranks", "remarks")
    terminal.table(headers, [_row(one) for one in summaries], is_text=True)
    return 0


def _row(one: "TargetSummary") -> tuple[str, ...]:
    aliases = ", ".join(one.aliases) or "-"
    if one.problem is not None:
        return (one.name, aliases, one.owner or "-", "-", "no", "no", "-", one.problem)
    builds = _yes(one.can_build) if one.opens == "bundle" else "-"
    ranks = "several" if one.has_ranks else "one"
    remarks = [*one.missing]
    if one.variants:
        remarks.append(f"variants: {', '.join(one.variants)}")
    return (
        one.name,
        aliases,
        one.owner,
        f"{one.opens}s",
        builds,
        _yes(one.can_run),
        ranks,
        "; ".join(remarks),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _probe(options: argparse.Namespace, terminal: Terminal) -> int:
    from compiler.workflows.describe_targets import probe_target

    found = probe_target(options.name)
    if terminal.is_json:
        terminal.json(plain(found))
    else:
        rows = [
            ("target", found.name),
            ("owner", found.owner),
            ("opens", f"{found.opens}s"),
            ("builds here", _yes(found.can_build) if found.opens == "bundle" else "-"),
            ("runs here", _yes(found.can_run)),
            ("ranks", "several" if found.has_ranks else "one"),
            *((name, value or "-") for name, value in found.facts.items()),
            *(("missing", one) for one in found.missing),
        ]
        terminal.table(("", ""), rows, is_text=True)
    return 0 if found.is_able else EXIT_MACHINE_LACKS


def _test(options: argparse.Namespace, terminal: Terminal) -> int:
    from compiler.conformance import SuiteRequest, run_suite

    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}", hint="0 or more", code="usage")
    request = SuiteRequest(
        target=options.name,
        only=tuple(options.only),
        seed=options.seed,
        keep=options.keep,
    )
    with terminal.progress() as progress:
        report = run_suite(request, progress=progress)
    if terminal.is_json:
        terminal.json({**_as_json(report), "passed": report.passed})
    else:
        _print_report(report, terminal)
    return 0 if report.passed else EXIT_CHECK_FAILED


def _as_json(report: "ConformanceReport") -> dict[str, object]:
    found = plain(report)
    assert isinstance(found, dict), "a dataclass"
    return found


def _print_report(report: "ConformanceReport", terminal: Terminal) -> None:
    rows = [(one.name, one.status.replace("-", " "), one.said) for one in report.checks]
    terminal.table(("check", "result", ""), rows, is_text=True)
    for one in report.checks:
        if one.status == "fail":
            _print_failure(one, terminal)
    counts = [
        f"{number} {status.replace('-', ' ')}"
        for status in ("pass", "fail", "not-applicable", "not-shown")
        if (number := sum(one.status == status for one in report.checks))
    ]
    verdict = "conforms" if report.passed else "does not conform"
    built = f", built in {report.dtype}" if report.dtype else ""
    terminal.line(f"{report.target} {verdict}{built}: {', '.join(counts)}")


def _print_failure(one: "CheckResult", terminal: Terminal) -> None:
    terminal.line("")
    terminal.line(f"{one.name}: {one.said}")
    for label, text in (
        ("expected", one.expected),
        ("came", one.came),
        ("look at", one.look_at),
    ):
        for number, line in enumerate(text.splitlines()):
            terminal.line(f"  {label + ':' if not number else '':<10}{line}")
    terminal.line("")
