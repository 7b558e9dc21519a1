"""TVM without torch, and its runtime without TVM: each in a process of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.contracts.errors import MachineLacks
from compiler.relax import lean

ROOT = Path(lean.__file__).parents[2]


def fresh(code: str) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = "print(*sorted({'torch', 'tvm', 'tvm_ffi', 'onnx', 'transformers'} & set(sys.modules)))"


def test_importing_the_package_imports_nothing_heavy():
    assert fresh(f"import sys, compiler.relax\n{LOADED}") == ""


def test_the_runtime_alone():
    assert (
        fresh(
            "import sys\nfrom compiler.relax import import_tvm_ffi\nffi = import_tvm_ffi()\n"
            "assert ffi.get_global_func('runtime.TVMTensorCreateView') is not None\n"
            f"assert 'torch' not in sys.modules\n{LOADED}"
        )
        == "tvm_ffi"
    )


def test_tvm_without_torch_which_stays_importable():
    assert (
        fresh(
            "import sys\nfrom compiler.relax import import_tvm\ntvm = import_tvm()\n"
            "assert 'torch' not in sys.modules\n"
            "assert tvm is import_tvm() is sys.modules['tvm']\n"
            "import torch\nprint(int(torch.ones(3).sum()))"
        )
        == "3"
    )


def test_a_torch_that_is_loaded_stays():
    assert (
        fresh(
            "import sys, torch\nfrom compiler.relax import import_tvm_ffi\nimport_tvm_ffi()\n"
            "print(sys.modules['torch'] is torch)"
        )
        == "True"
    )


def test_without_tvm_it_says_how_to_get_it():
    text = fresh(
        "import sys\nsys.modules['tvm'] = None\nfrom compiler.relax import import_tvm\n"
        "from compiler.contracts.errors import MachineLacks\n"
        "try:\n    import_tvm()\nexcept MachineLacks as error:\n"
        "    print(error.exit_code, error.message)\n    print(error.hint)\n"
        "assert 'torch' not in sys.modules"
    )
    message, hint = text.splitlines()
    assert message.startswith("3 tvm cannot be imported: ")
    assert hint == "pip install 'graphlower' installs the pinned apache-tvm and apache-tvm-ffi"


def test_a_missing_runtime_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tvm").mkdir()
    (tmp_path / "tvm" / "__init__.py").write_text("")
    spec = importlib.util.spec_from_file_location(
        "tvm", tmp_path / "tvm" / "__init__.py", submodule_search_locations=[str(tmp_path / "tvm")]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "tvm" else None)
    with pytest.raises(MachineLacks) as caught:
        lean.import_tvm_ffi.__wrapped__()
    assert caught.value.message == "libtvm_runtime.so is not installed"
    assert caught.value.hint == "pip install 'apache-tvm==0.27.0.post1'"
