"""`check`: what would be built, and everything that is wrong, without reading a weight."""

import argparse

from compiler.contracts.errors import CompilerError
from compiler.terminal import Terminal, each_error, error_json, plain


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check, and print the plan or the errors."""
    from compiler.config import load_config
    from compiler.workflows.check import check

    try:
        config = load_config(options.yaml, overrides=options.overrides, target=options.target)
    except CompilerError as error:
        if not terminal.is_json:
            raise
        errors = [error_json(one) for one in each_error(error)]
        terminal.json({"ok": False, "errors": errors, "plan": None})
        return error.exit_code
    result = check(config)
    code = max((error.exit_code for error in result.errors), default=0)
    if terminal.is_json:
        errors = [error_json(error) for error in result.errors]
        terminal.json({"ok": result.ok, "errors": errors, "plan": plain(result.plan)})
        return code
    if result.plan is not None:
        terminal.tree(result.plan)
    for error in result.errors:
        terminal.error(error)
    if result.ok:
        terminal.note(f"{options.yaml} can be built")
    return code
