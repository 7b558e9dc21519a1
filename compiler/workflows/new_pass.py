"""A pass to start from, and its test, written into a folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from compiler import registry
from compiler.contracts.errors import ConfigError
from compiler.pass_kit.template import PASS, TEST

# verb-noun: what the pass does, and to what.
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")


@dataclass(frozen=True)
class NewPass:
    """What was written.

    Attributes:
        name: The YAML's spelling of the pass, had it an entry point: `my-pass`.
        entry: What a YAML's `passes:` takes: `./my_pass.py:MyPass`.
        file: The pass.
        test: Its test.
    """

    name: str
    entry: str
    file: Path
    test: Path


def new_pass(name: str, *, folder: Path) -> NewPass:
    """Write `my_pass.py` and `test_my_pass.py` for a pass called `my-pass`.

    Args:
        name: `verb-noun`, in lower case.
        folder: Where the files go; made where it is missing.

    Raises:
        ConfigError: The name is malformed or taken, or one of the files exists.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"'{name}' is not the name of a pass",
            where="passes new",
            hint="write a verb and a noun in lower case with hyphens: fuse-gate",
            code="bad-name",
        )
    if name in registry.passes():
        raise ConfigError(
            f"there is a pass named '{name}', of {registry.pass_owner(name)}",
            where="passes new",
            hint="take another name: two passes of one name are refused",
            code="duplicate-name",
        )
    module = name.replace("-", "_")
    class_name = "".join(word.capitalize() for word in name.split("-"))
    file, test = folder / f"{module}.py", folder / f"test_{module}.py"
    for path in (file, test):
        if path.exists():
            hint = "take another name, or another --folder"
            raise ConfigError("exists already", where=str(path), hint=hint, code="exists")
    names = {"name": name, "module_name": module, "class_name": class_name, "function_name": module}
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in ((file, PASS), (test, TEST)):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(template.substitute(names), encoding="utf-8")
        partial.replace(path)
    return NewPass(name, f"./{file.name}:{class_name}", file, test)
