"""Packages of targets in a folder, as pip would leave them there; no network is needed."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from compiler_process import ROOT

EXAMPLE = ROOT / "tests" / "example_plugin"


def install_example(folder: Path, scratch: Path) -> Path:
    """The example's package in `folder`: by pip where it can build, else as pip would leave it."""
    source = Path(shutil.copytree(EXAMPLE, scratch / "example_plugin"))
    if _can_build():
        flags = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *flags]
        subprocess.run([*command, str(folder), str(source)], check=True, capture_output=True)
        return folder
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (module,) = source.glob("*.py")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(module, folder)
    points = project["entry-points"]["graphlower.targets"]
    write_metadata(folder, project["name"], points)
    return folder


def _can_build() -> bool:
    """Whether setuptools is here and makes wheels by itself, which it does since 70.1."""
    try:
        major = int(metadata.version("setuptools").partition(".")[0])
    except metadata.PackageNotFoundError:
        return False
    return major > 70


def write_metadata(folder: Path, name: str, targets: Mapping[str, str]) -> None:
    """The dist-info of a package that brings targets: name -> "module:Class"."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{target} = {path}" for target, path in targets.items()]
    text = "\n".join(["[graphlower.targets]", *lines])
    (info / "entry_points.txt").write_text(f"{text}\n", encoding="utf-8")
