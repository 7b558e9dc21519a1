"""The C linker that turns object files into the bundle's library: the host's, or PyPI's ziglang."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compiler.contracts.errors import MachineLacks

_HINT = "install a C compiler (Debian: apt-get install gcc), or: pip install ziglang"


def find_linker() -> tuple[str, ...] | None:
    """The command of a C compiler driver: $CC, cc, gcc, clang or ziglang; None without any."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found is not None:
            return (found,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    return None


def link_shared(output: str, objects: Sequence[str], options: object = None) -> None:
    """Link `objects` into the shared library `output`; the signature that TVM's export calls.

    Raises:
        MachineLacks: There is no linker, or it failed.
    """
    del options
    linker = find_linker()
    if linker is None:
        raise MachineLacks("there is no C compiler to link the library with", hint=_HINT)
    # Names relative to one folder: a linker may record what it is called with.
    folder = Path(objects[0]).parent
    names = [os.path.relpath(one, folder) for one in objects]
    # No build id: it would be the only thing that depends on the linker's own inputs' order.
    command = [*linker, "-shared", "-fPIC", "-Wl,--build-id=none", "-o", output, *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise MachineLacks(f"the linker {linker[0]} failed: {said}", hint=_HINT)


# TVM asks what kind of object files the function takes.
link_shared.object_format = "o"  # type: ignore[attr-defined]
link_shared.output_format = "so"  # type: ignore[attr-defined]
