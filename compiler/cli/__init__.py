"""The command line: parses arguments, calls a workflow, renders what it gives, exits with its code.

Only this package and `compiler.terminal` print. Results go to stdout, progress and errors to
stderr; with `--json`, stdout holds one object, errors included. A verb's module, and all that is
heavy, is imported when the verb runs.
"""

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from compiler.cli.parser import parse_arguments
from compiler.contracts.errors import (
    EXIT_INTERRUPTED,
    EXIT_OUR_BUG,
    CompilerError,
    MachineLacks,
)
from compiler.ranks.world import current_world
from compiler.terminal import Terminal

# What a shell gives a process whose reader has gone (128 + SIGPIPE).
EXIT_BROKEN_PIPE = 141

_MACHINE_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; the process's own when None.

    Returns:
        The exit code (see `compiler.contracts.errors`).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    world = current_world()
    is_first = world is None or world.rank == 0
    # The other ranks' errors go to stderr: the first may be ended before it can say its own.
    terminal = Terminal(
        is_json="--json" in arguments and is_first,
        is_quiet="--quiet" in arguments or not is_first,
    )
    try:
        if is_first:
            return _run(arguments, terminal)
        # The other ranks of a launch compute the same; of several voices one is heard.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            return _run(arguments, terminal)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(arguments: list[str], terminal: Terminal) -> int:
    try:
        options = parse_arguments(arguments)
        verb = importlib.import_module(f"compiler.cli.{options.verb}")
        code: int = verb.main(options, terminal)
        sys.stdout.flush()
    except CompilerError as error:
        terminal.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        terminal.interrupted()
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _MACHINE_ERRNOS:
            return _our_bug(error, terminal)
        lacking = MachineLacks(
            f"{error.strerror}: {error.filename or 'a file'}",
            hint="free some space, or change the permissions or the place",
            code="file-system",
        )
        terminal.error(lacking)
        return lacking.exit_code
    except Exception as error:  # the process's boundary: shown with its traceback, never swallowed
        return _our_bug(error, terminal)
    return code


def _our_bug(error: Exception, terminal: Terminal) -> int:
    traceback.print_exception(error)
    terminal.error(
        CompilerError(
            f"a bug in graphlower: {type(error).__name__}: {error}",
            hint="please report it with the traceback and the command",
            code="our-bug",
        )
    )
    return EXIT_OUR_BUG
