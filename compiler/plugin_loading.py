"""A plugin's class from "module:Class" or a file, and what is said where there is none."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from compiler.contracts.errors import CompilerError, ConfigError, MachineLacks

# What the module of a plugin may raise when it is imported, a missing module aside.
_BROKEN_MODULE = (
    ImportError,
    SyntaxError,
    NameError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
)

_Plugin = TypeVar("_Plugin")


@dataclass(frozen=True)
class Entry:
    """One name: its class as "module:Class", and the distribution that brings it."""

    name: str
    path: str
    owner: str


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest to a misspelt one, if one is near."""
    spelled = {word.lower().replace("_", "-"): word for word in known}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), spelled, n=1, cutoff=0.6)
    return spelled[near[0]] if near else None


def load_class(entry: Entry, kind: str, base: type[_Plugin], *, where: str | None) -> type[_Plugin]:
    """The class that an entry names.

    Raises:
        ConfigError: Its module cannot be imported, or holds no such class.
        MachineLacks: Its module needs a package that is not installed.
    """
    module_name, _, class_name = entry.path.partition(":")
    said = f"{kind} '{entry.name}' of {entry.owner} ({entry.path})"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise _missing_module(said, e, where=where) from e
    except _BROKEN_MODULE as e:
        message = f"{said} cannot be loaded: {type(e).__name__}: {e}"
        hint = f"mend or uninstall {entry.owner}"
        raise ConfigError(message, where=where, hint=hint, code="bad-plugin") from e
    return _class_of(module, class_name, base, said=said, where=where)


def class_in_file(
    name: str, folder: Path, base: type[_Plugin], *, where: str | None
) -> type[_Plugin]:
    """The pass that `file.py:Class` names, the file relative to `folder`.

    Raises:
        ConfigError: There is no such file or class, or the file cannot be run.
        MachineLacks: It needs a package that is not installed.
    """
    file, _, class_name = name.rpartition(":")
    path = (folder / Path(file).expanduser()).resolve()
    if not path.is_file():
        hint = f"a relative path starts at the YAML's folder: {path}"
        message = f"pass '{name}': there is no file '{file}'"
        raise ConfigError(message, where=where, hint=hint, code="unknown-name")
    module_name = f"graphlower_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, f"no import specification for {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look the module up by its name
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as e:
        raise _missing_module(f"pass '{name}'", e, where=where) from e
    except _BROKEN_MODULE as e:
        message = f"pass '{name}' cannot be loaded: {type(e).__name__}: {e}"
        raise ConfigError(message, where=where, hint=f"mend {path}", code="bad-plugin") from e
    return _class_of(module, class_name, base, said=f"pass '{name}'", where=where)


def _missing_module(said: str, error: ModuleNotFoundError, *, where: str | None) -> CompilerError:
    return MachineLacks(
        f"{said} needs the module '{error.name}', which is not installed",
        where=where,
        hint=f"install the package that holds '{error.name}'",
    )


def _class_of(
    module: ModuleType, name: str, base: type[_Plugin], *, said: str, where: str | None
) -> type[_Plugin]:
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        near = did_you_mean(name, classes)
        hint = f"did you mean '{near}'?" if near else f"name a subclass of {base.__name__}"
        message = f"{said}: there is no class '{name}'"
        raise ConfigError(message, where=where, hint=hint, code="unknown-name")
    if not inspect.isclass(found) or not issubclass(found, base) or inspect.isabstract(found):
        message = f"{said}: '{name}' is not a {base.__name__}"
        hint = f"derive it from {base.__module__}.{base.__name__} and implement its methods"
        raise ConfigError(message, where=where, hint=hint, code="bad-plugin")
    return found
