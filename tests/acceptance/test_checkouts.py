"""A stranger's clone answers, and two clones build the same bytes."""

import filecmp
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_table import Table
from compiler_process import ROOT, command

pytestmark = pytest.mark.accept

MODEL = Path("models") / "smollm2-135m.yaml"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gone afterwards: gigabytes."""
    path = tmp_path_factory.mktemp("checkouts")
    yield path
    shutil.rmtree(path)


def clone(target: Path) -> Path:
    """What is committed, and nothing else."""
    subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True
    )
    return target


def test_the_demo_answers_on_a_fresh_clone(table: Table, folder: Path) -> None:
    checkout = clone(folder / "graphlower")
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "TVM_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env["GRAPHLOWER_CACHE"] = str(folder / "cache")
    env["PATH"] = os.pathsep.join(
        part for part in env["PATH"].split(os.pathsep) if not part.startswith(str(ROOT))
    )
    began = time.perf_counter()
    demo = subprocess.run(
        ["make", "demo"], cwd=checkout, env=env, capture_output=True, text=True, check=False
    )
    minutes = (time.perf_counter() - began) / 60
    answer = demo.stdout.strip().splitlines()[-1] if demo.stdout.strip() else demo.stderr[-300:]
    table.judge(
        "`make demo` on a fresh clone, cache empty: What is the capital of France?",
        wanted="Paris",
        measured=f"{answer.strip().replace('|', '/')} ({minutes:.1f} minutes)",
        is_met=demo.returncode == 0 and "Paris" in answer,
    )


def test_two_clones_build_the_same_bytes(table: Table, folder: Path) -> None:
    for name, seed in (("one", "1"), ("the second", "31337")):
        checkout = clone(folder / name / "graphlower")
        (folder / name / "tmp").mkdir()
        env = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "PYTHONHASHSEED": seed,
            "TMPDIR": str(folder / name / "tmp"),
        }
        built = subprocess.run(
            command("build", MODEL, "--quiet", "-o", folder / name / "bundle"),
            cwd=checkout,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stderr
    one, other = folder / "one" / "bundle", folder / "the second" / "bundle"
    files = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    others = sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    _, different, unreadable = filecmp.cmpfiles(one, other, files, shallow=False)
    table.judge(
        "two builds of SmolLM2-135M: two clones, TMPDIRs and PYTHONHASHSEEDs",
        wanted="equal, file by file",
        measured=f"{len(files) - len(different) - len(unreadable)} of {len(files)} files equal"
        f" {', '.join(different)}".rstrip(),
        is_met=files == others and not different and not unreadable and "manifest.json" in files,
    )
