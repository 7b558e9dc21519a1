"""Two builds of equal inputs from two checkouts are equal, file by file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from built_bundles import BuiltBundles
from compiler_process import ROOT, command
from disk_state import files_below

pytestmark = pytest.mark.slow

PACKAGES = ("compiler", "passes", "targets", "models")


def start_build(folder: Path, yaml: Path, *, seed: str, umask: int) -> subprocess.Popen[str]:
    """A build by a copy of the sources, with a temporary folder and a workspace of its own."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / "checkout" / package, ignore=ignored)
    (folder / "tmp").mkdir()
    # Where it sees that it is tested, onnxruntime leaves nothing in the temporary folder anyhow.
    quiet = ("CI", "ORT_DISABLE_TELEMETRY")
    env = {
        **{name: value for name, value in os.environ.items() if name not in quiet},
        "PYTHONPATH": str(folder / "checkout"),
        "PYTHONHASHSEED": seed,
        "TMPDIR": str(folder / "tmp"),
    }
    where = "import compiler.cli; print(compiler.cli.__file__)"
    imported = subprocess.run(
        [sys.executable, "-c", where],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.startswith(str(folder))
    return subprocess.Popen(
        command("build", yaml, "-o", folder / "bundle", "--set", f"workspace.path={folder / 'ws'}"),
        cwd=folder,
        env=env,
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_checkouts_build_the_same_bytes(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    yaml = built_bundles.yaml()
    first, second = tmp_path / "first", tmp_path / "a second, longer path"
    builds = [
        start_build(first, yaml, seed="1", umask=0o022),
        start_build(second, yaml, seed="4242", umask=0o077),
    ]
    outputs = [build.communicate()[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], "\n".join(outputs)

    one, other = files_below(first / "bundle"), files_below(second / "bundle")
    assert len(one) > 20
    assert {"manifest.json", "params/rank0.safetensors", "prefill_32_rank0/module.so"} <= set(one)
    assert list(one) == list(other)
    assert [name for name in one if one[name] != other[name]] == []
    # Nothing stays in the temporary folder, and no absolute path is in the bundle.
    assert [*(first / "tmp").iterdir(), *(second / "tmp").iterdir()] == []
    assert [name for name in one if os.fsencode(tmp_path) in one[name]] == []
