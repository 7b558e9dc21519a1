"""`passes`: list and explain them, begin one of one's own, try one on generated graphs."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.contracts.errors import EXIT_CHECK_FAILED, ConfigError
from compiler.terminal import Terminal, plain

if TYPE_CHECKING:
    from compiler.pass_kit import Failure, Outcome
    from compiler.workflows.describe_passes import OptionSummary, PassExplanation
    from compiler.workflows.try_pass import TryResult


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run the action that `options` name."""
    match options.action:
        case "list":
            return _list(terminal)
        case "explain":
            return _explain(options, terminal)
        case "new":
            return _new(options, terminal)
        case "test":
            return _test(options, terminal)
        case _:
            raise AssertionError(f"the parser let through {options.action}")


def _list(terminal: Terminal) -> int:
    from compiler.workflows.describe_passes import list_passes

    summaries = list_passes()
    if terminal.is_json:
        terminal.json({"passes": [plain(summary) for summary in summaries]})
        return 0
    rows = [
        (
            one.name,
            ", ".join(one.phases),
            ", ".join(_option(option) for option in one.options),
            one.contract,
            one.owner,
            one.summary if one.problem is None else f"cannot be loaded: {one.problem}",
        )
        for one in summaries
    ]
    headers = ("pass", "phases", "options", "contract", "owner", "does")
    terminal.table(headers, rows, is_text=True)
    return 0


def _option(option: "OptionSummary") -> str:
    return option.name if option.default is None else f"{option.name}={option.default}"


def _explain(options: argparse.Namespace, terminal: Terminal) -> int:
    from compiler.workflows.describe_passes import explain_pass
    from compiler.workflows.try_pass import named_pass

    explanation = explain_pass(named_pass(options.name, options.overrides, is_shown=True))
    if terminal.is_json:
        terminal.json(plain(explanation))
    else:
        _print_explanation(explanation, terminal)
    return 0


def _print_explanation(one: "PassExplanation", terminal: Terminal) -> None:
    terminal.line(f"{one.name} ({one.source})")
    terminal.line("")
    terminal.line(one.about)
    terminal.line("")
    rows = [
        ("runs in", ", ".join(one.phases)),
        ("promises", one.contract),
        ("signature", "changes" if one.changes_signature else "stays"),
        ("requires", ", ".join(one.requires) or "-"),
        ("stands after", ", ".join(one.after) or "-"),
        ("stands before", ", ".join(one.before) or "-"),
    ]
    for option in one.options:
        default = "must be given" if option.default is None else f"default {option.default}"
        rows.append((f"option {option.name}", f"{option.type}; {default}"))
    terminal.table(("", ""), rows, is_text=True)
    if one.example_before is None or one.example_after is None:
        _section("it rewrites nothing in generated blocks", "", terminal)
    else:
        _section("before", one.example_before, terminal)
        _section("after", one.example_after, terminal)
    skips = "".join(f"{skip.node}: {skip.reason}\n" for skip in one.skips)
    _section("declined in generated blocks", skips or "nothing\n", terminal)


def _section(title: str, text: str, terminal: Terminal) -> None:
    terminal.line("")
    terminal.line(title)
    for line in text.splitlines():
        terminal.line(f"  {line}")


def _new(options: argparse.Namespace, terminal: Terminal) -> int:
    from compiler.workflows.new_pass import new_pass

    made = new_pass(options.name, folder=options.folder)
    if terminal.is_json:
        terminal.json(plain(made))
        return 0
    terminal.line(str(made.file))
    terminal.line(str(made.test))
    terminal.note(f"try it:  python -m pytest {made.test}")
    terminal.note(f"         python -m compiler passes test {made.file}:{_class(made.entry)}")
    terminal.note(f"use it:  `passes: {{add: [{made.entry}]}}` in a YAML in its folder")
    return 0


def _class(entry: str) -> str:
    return entry.rpartition(":")[2]


def _test(options: argparse.Namespace, terminal: Terminal) -> int:
    from compiler.workflows.try_pass import named_pass, try_again, try_on_graphs

    for name, value, least in (("--graphs", options.graphs, 1), ("--seed", options.seed, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}", hint=f"{least} or more", code="usage")
    rewriting = named_pass(options.name, options.overrides)
    if options.reproduce is not None:
        outcome = try_again(rewriting, options.reproduce)
        return _print_again(rewriting.name, outcome, terminal)
    with terminal.progress() as progress:
        progress.start(f"trying {rewriting.name}")
        result = try_on_graphs(
            rewriting,
            graphs=options.graphs,
            seed=options.seed,
            command=_command(options),
            destination=options.output or Path(f"{rewriting.name}.counterexample.txt"),
            progress=progress,
        )
    if terminal.is_json:
        terminal.json(_json(rewriting.name, result))
    else:
        _print_tried(rewriting.name, result, terminal)
    return 0 if result.tried.passed else EXIT_CHECK_FAILED


def _command(options: argparse.Namespace) -> str:
    settings = [word for one in options.overrides for word in ("--set", one)]
    return shlex.join(["python", "-m", "compiler", "passes", "test", options.name, *settings])


def _print_again(name: str, outcome: "Outcome", terminal: Terminal) -> int:
    finding = outcome.finding
    if terminal.is_json:
        terminal.json({"pass": name, "passed": finding is None, "finding": plain(finding)})
    elif finding is None:
        terminal.line(f"{name} has nothing wrong on that graph")
    else:
        terminal.line(f"{name} {finding.said}")
    return 0 if finding is None else EXIT_CHECK_FAILED


def _json(name: str, result: "TryResult") -> dict[str, object]:
    tried, failure = result.tried, result.tried.failure
    return {
        "pass": name,
        "passed": tried.passed,
        "graphs": tried.graphs,
        "rewrote": tried.rewrote,
        "rewrites": tried.rewrites,
        "declined": tried.declined,
        "refused": tried.refused,
        "matched_nothing": tried.matched_nothing,
        "skips": plain(tried.examples),
        "failure": None
        if failure is None
        else {
            "graph": str(failure.recipe),
            "check": failure.finding.check,
            "found": failure.found.said,
            "smallest": failure.finding.said,
            "nodes": len(failure.case.program.graph.nodes),
            "counterexample": str(result.counterexample),
        },
    }


def _print_tried(name: str, result: "TryResult", terminal: Terminal) -> None:
    tried, failure = result.tried, result.tried.failure
    if failure is not None:
        _print_failure(name, tried.graphs, failure, terminal)
        terminal.line(f"saved as {result.counterexample}")
        return
    terminal.line(
        f"{name} rewrote {_count(tried.rewrites, 'place')} "
        f"on {tried.rewrote} of {_count(tried.graphs, 'graph')}, and nothing is wrong"
        if not tried.matched_nothing
        else f"{name} matched nothing on {_count(tried.graphs, 'graph')}: it was not tried"
    )
    if tried.declined:
        terminal.line(f"it declined candidates on {tried.declined}, for example")
    for skip in tried.examples:
        terminal.line(f"  {skip.node}: {skip.reason}")
    if tried.refused:
        terminal.line(f"it refused {_count(tried.refused, 'graph')} with an error of its own")


def _print_failure(name: str, number: int, failure: "Failure", terminal: Terminal) -> None:
    from compiler.pass_kit import text_of

    program = failure.case.program
    terminal.line(f"{name} failed on graph {number} ({failure.recipe})")
    terminal.line(f"  {failure.finding.check}: {failure.found.said}")
    terminal.line("")
    terminal.line(f"the smallest such graph has {_count(len(program.graph.nodes), 'node')}")
    terminal.line(f"  {failure.finding.check}: {failure.finding.said}")
    for line in text_of(program).splitlines():
        terminal.line(f"  {line}")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
