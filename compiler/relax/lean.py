"""Import TVM, or its runtime alone, without the torch that tvm_ffi imports where it finds it.

tvm_ffi loads torch for its DLPack fast path; here that costs 200 MB and seconds, and nothing uses
it.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from compiler.contracts.errors import MachineLacks


@contextmanager
def _without_torch() -> Iterator[None]:
    """Make `import torch` fail inside, unless it is loaded already; a later import works."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # the documented way to block a name
    try:
        yield
    finally:
        del sys.modules["torch"]


def _lacks(package: str, error: ImportError) -> MachineLacks:
    return MachineLacks(
        f"{package} cannot be imported: {error}",
        hint="pip install 'graphlower' installs the pinned apache-tvm and apache-tvm-ffi",
    )


@cache
def import_tvm() -> ModuleType:
    """The whole of TVM, for building.

    Raises:
        MachineLacks: It is not installed, or does not load.
    """
    try:
        with _without_torch():
            import tvm
            import tvm.relax.frontend.onnx
    except ImportError as error:
        raise _lacks("tvm", error) from error
    return tvm


@cache
def import_tvm_ffi() -> ModuleType:
    """tvm_ffi with TVM's runtime library loaded: enough to run an executable, without `import tvm`.

    Raises:
        MachineLacks: It is not installed, or the runtime library is missing.
    """
    try:
        with _without_torch():
            import tvm_ffi
    except ImportError as error:
        raise _lacks("tvm_ffi", error) from error
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    libraries = [path for folder in folders for path in Path(folder).rglob("libtvm_runtime.so")]
    if not libraries:
        raise MachineLacks(
            "libtvm_runtime.so is not installed", hint="pip install 'apache-tvm==0.27.0.post1'"
        )
    # Global symbols: a compiled module resolves the runtime's functions by name.
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_GLOBAL)
    return tvm_ffi
