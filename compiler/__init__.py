"""A declarative graph compiler for the Qwen family: YAML in, bundle out.

The names below are loaded when they are first used: importing this package imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler.config import BuildConfig, load_config
    from compiler.contracts.errors import CompilerError
    from compiler.contracts.progress import Progress
    from compiler.stages.execute import GenerateOptions, Session
    from compiler.workflows.build import build
    from compiler.workflows.check import check
    from compiler.workflows.compare import compare
    from compiler.workflows.run import open_session

_HOMES = {
    "BuildConfig": "compiler.config",
    "CompilerError": "compiler.contracts.errors",
    "GenerateOptions": "compiler.stages.execute",
    "Progress": "compiler.contracts.progress",
    "Session": "compiler.stages.execute",
    "build": "compiler.workflows.build",
    "check": "compiler.workflows.check",
    "compare": "compiler.workflows.compare",
    "load_config": "compiler.config",
    "open_session": "compiler.workflows.run",
}

__all__ = [
    "BuildConfig",
    "CompilerError",
    "GenerateOptions",
    "Progress",
    "Session",
    "build",
    "check",
    "compare",
    "load_config",
    "open_session",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'compiler' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
