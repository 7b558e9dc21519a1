"""What need not be installed: imported by name, so that type checkers do not ask for it either."""

import importlib
from types import ModuleType

HOW = "pip install 'graphlower[benchmark]'"


def optional(name: str) -> ModuleType:
    """A module, imported now.

    Raises:
        SystemExit: It is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{name} is not installed ({error}): {HOW}") from error


def drawing() -> ModuleType:
    """Matplotlib's pyplot, drawing into files."""
    optional("matplotlib").use("Agg")
    return optional("matplotlib.pyplot")
