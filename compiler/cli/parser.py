"""The arguments of every verb."""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from compiler.contracts.errors import ConfigError

PROGRAM = "python -m compiler"

_EXIT_CODES = """\
exit codes: 0 done; 1 a check ran and failed; 2 bad input; 3 the machine lacks something;
70 a bug of ours; 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """Raises a ConfigError where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        near = _did_you_mean(message)
        hint = f"did you mean {near}?" if near else f"see {self.prog} --help"
        raise ConfigError(message, where="command line", hint=hint, code="usage")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command; `verb` names it.

    Raises:
        ConfigError: The arguments are wrong.
        SystemExit: Help was asked for, and given.
    """
    return _parser().parse_args(arguments)


def _did_you_mean(message: str) -> str | None:
    """The verb or option that is nearest to the one that argparse refuses."""
    wrong = re.match(
        r"argument (?:VERB|ACTION): invalid choice: '([^']*)'|unrecognized arguments: (\S+)",
        message,
    )
    if wrong is None:
        return None
    if wrong[1] is not None:
        known = re.findall(r"[\w-]+", message.partition("choose from")[2])
    else:
        known = sorted(_options(_parser()))
    near = difflib.get_close_matches((wrong[1] or wrong[2]).partition("=")[0], known, n=1)
    return near[0] if near else None


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser, and of every verb and action below it."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found |= {name for below in action.choices.values() for name in _options(below)}
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="A declarative graph compiler for the Qwen family.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_build(verbs)
    _add_run(verbs)
    _add_bench(verbs)
    _add_compare(verbs)
    _add_evaluate(verbs)
    _add_sensitivity(verbs)
    _add_check(verbs)
    _add_bisect(verbs)
    _add_passes(verbs)
    _add_targets(verbs)
    return parser


def _add_verb(
    verbs: "argparse._SubParsersAction[_Parser]", name: str, summary: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object, errors too")
    verb.add_argument("--quiet", action="store_true", help="print no progress and no remarks")
    return verb


def _add_yaml(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("yaml", type=Path, metavar="YAML", help="what to build")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="put a value over the YAML's; may be repeated",
    )


def _add_build(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "build", "build a bundle from a YAML")
    _add_yaml(verb)
    verb.add_argument("--target", metavar="NAME", help="the target, in place of backend.type")
    verb.add_argument("-o", "--output", type=Path, metavar="DIR", help="the bundle's folder")
    verb.add_argument("--force", action="store_true", help="replace another bundle that is there")


def _add_check(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(
        verbs, "check", "say what would be built, and what is wrong, reading no weight"
    )
    _add_yaml(verb)
    verb.add_argument("--target", metavar="NAME", help="the target, in place of backend.type")


def _add_bisect(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "bisect", "find the first pass that changes the numbers")
    _add_yaml(verb)
    verb.add_argument("--target", metavar="NAME", help="the target, in place of backend.type")
    verb.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest absolute difference, in place of what the passes promise",
    )
    verb.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write what shows it"
    )


def _add_passes(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    summary = "list and explain passes, begin one of your own, try one on generated graphs"
    verb = verbs.add_parser(
        "passes", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    actions = verb.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_verb(actions, "list", "show every pass, with its options and what it promises")
    explain = _add_verb(actions, "explain", "show what a pass does, on a small generated graph")
    _add_pass(explain)
    new = _add_verb(actions, "new", "write a small pass that works, and its test, to start from")
    new.add_argument("name", metavar="NAME", help="verb and noun, with hyphens: fuse-gate")
    new.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where to (here)")
    test = _add_verb(actions, "test", "try a pass on generated Qwen graphs, and shrink a failure")
    _add_pass(test)
    test.add_argument("--graphs", type=int, default=20, metavar="N", help="graphs to try (20)")
    test.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first (0)")
    test.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where a failing graph is written"
    )
    test.add_argument(
        "--reproduce", type=Path, metavar="FILE", help="try the graph of that file instead"
    )


def _add_pass(action: argparse.ArgumentParser) -> None:
    action.add_argument("name", metavar="PASS", help="its name, or ./file.py:Class")
    action.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        dest="overrides",
        help="an option of the pass; may be repeated",
    )


def _add_targets(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    summary = "list targets, ask one what it can do here, try one on what every target must do"
    verb = verbs.add_parser(
        "targets", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    actions = verb.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_verb(actions, "list", "show every target, who brings it, and what it can do here")
    probe = _add_verb(actions, "probe", "show what a target finds here, and what it lacks")
    probe.add_argument("name", metavar="TARGET", help="its name or alias")
    test = _add_verb(actions, "test", "run the conformance suite on a target")
    test.add_argument("name", metavar="TARGET", help="its name or alias")
    test.add_argument(
        "--only", action="append", default=[], metavar="CHECK", help="that check; may be repeated"
    )
    test.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and tokens (0)")
    test.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave models and bundles there, a new folder"
    )


def _add_compare(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "compare", "hold targets against the first one, on equal inputs")
    _add_yaml(verb)
    verb.add_argument(
        "--targets",
        metavar="A,B",
        help="the reference, then what to hold against it: names, name@variant, or saved outputs "
        "(.npz); torch and the YAML's target where left out",
    )
    verb.add_argument(
        "--level",
        choices=("end-to-end", "layer", "tap"),
        default="end-to-end",
        help="logits alone; what each layer leaves behind; every value in it",
    )
    verb.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="one prompt a line, or a JSON list of prompts or conversations (.json)",
    )
    verb.add_argument(
        "--inputs", type=Path, metavar="FILE.npz", help="read the tokens of saved outputs"
    )
    verb.add_argument("--tokens", type=int, metavar="N", help="tokens a prompt (16; by tap 4)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the inputs (0)")
    verb.add_argument("--text", type=Path, metavar="FILE", help="compare the perplexity of a text")
    verb.add_argument(
        "--save", type=Path, metavar="FILE.npz", help="save the outputs of the first target"
    )
    verb.add_argument(
        "--against", type=Path, metavar="FILE.npz", help="saved outputs are the reference"
    )
    verb.add_argument(
        "--ladder", action="store_true", help="attribute the difference to each step of the way"
    )
    verb.add_argument(
        "--semantic", action="store_true", help="check each target by itself, without a reference"
    )
    verb.add_argument(
        "--allow-missing", action="store_true", help="a target that cannot run here does not fail"
    )
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a report, one file")


def _add_evaluate(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(
        verbs, "evaluate", "measure the perplexity of a bundle, and what it lost in quantization"
    )
    verb.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    verb.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text")
    verb.add_argument("--tokens", type=int, metavar="N", help="read its first N tokens (all)")
    verb.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="what the bundle was built from: its float model is the reference",
    )
    verb.add_argument(
        "--max-perplexity-increase",
        type=float,
        metavar="X",
        help="fail when the perplexity is more than this share over the float model's",
    )
    verb.add_argument("--threads", type=int, metavar="N", help="threads to compute with")


def _add_sensitivity(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "sensitivity", "rank weights by what quantizing each alone costs")
    _add_yaml(verb)
    verb.add_argument("--target", metavar="NAME", help="the target, in place of backend.type")
    verb.add_argument(
        "--samples",
        type=int,
        default=4,
        metavar="N",
        help="windows of the calibration data, at most dataset.nsamples (4)",
    )


def _add_run(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "run", "run a bundle: continue a prompt, or hold a conversation")
    verb.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    prompt = verb.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="the prompt; - reads stdin; may be repeated where the bundle serves several",
    )
    prompt.add_argument("--token-ids", metavar="1,2,3", help="the prompt as token ids")
    verb.add_argument(
        "--chat",
        action="store_true",
        help="apply the chat template; without a prompt, converse on the terminal",
    )
    verb.add_argument("--system", metavar="TEXT", help="the system prompt, with --chat")
    verb.add_argument("--max-tokens", type=int, default=256, metavar="N", help="at most N (256)")
    verb.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy"
    )
    verb.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus (1)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (0)")
    verb.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end here; may be repeated"
    )
    verb.add_argument(
        "--logits", type=Path, metavar="FILE.npy", help="save the logits, [steps, vocabulary]"
    )
    verb.add_argument("--verify", action="store_true", help="hash the parameters again")
    verb.add_argument("--threads", type=int, metavar="N", help="threads to compute with")


def _add_bench(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    verb = _add_verb(verbs, "bench", "measure how fast a bundle runs here, and its memory")
    verb.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    verb.add_argument(
        "--prompt-tokens",
        type=int,
        nargs="+",
        metavar="N",
        help="lengths of prompts (128, and the whole window where it is longer)",
    )
    verb.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    verb.add_argument(
        "--blocks", type=int, default=5, metavar="N", help="a figure is the median of N blocks (5)"
    )
    verb.add_argument(
        "--profile", action="store_true", help="time each kernel, at the longest prompt"
    )
