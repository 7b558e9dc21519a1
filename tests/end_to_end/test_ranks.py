"""A bundle of two ranks as processes that torchrun starts, as a user starts them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import TINY, BuiltBundles
from compiler_process import environment, run_json
from vacc_bundles import VaccBundles, VaccModel

from compiler.stages.execute import GenerateOptions
from compiler.workflows.run import open_session

pytestmark = pytest.mark.slow

MODEL = replace(TINY, ways=2)
ARGUMENTS = ("--token-ids", "5,6,7,8", "--max-tokens", "6", "--json")


def torchrun(processes: int, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "compiler", "run"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def test_processes_say_what_threads_say(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    bundle = built_bundles.bundle(MODEL)
    threads, processes = tmp_path / "threads.npy", tmp_path / "processes.npy"
    wanted = run_json("run", bundle, *ARGUMENTS[:-1], "--logits", threads, cwd=tmp_path)
    done = torchrun(2, bundle, *ARGUMENTS, "--logits", processes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # one voice: one object
    assert found["tokens"] == wanted["tokens"]
    assert np.load(processes).tobytes() == np.load(threads).tobytes()


def test_another_number_of_processes_is_refused(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    done = torchrun(3, built_bundles.bundle(MODEL), *ARGUMENTS, cwd=tmp_path)
    assert done.returncode != 0
    # On stderr, or the first rank's on stdout: torchrun ends the others when one has failed.
    assert "the bundle has 2 ranks, and 3 processes were started for it" in (
        done.stdout + done.stderr
    )


def test_a_conversation_is_held_by_one_process(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    done = torchrun(2, built_bundles.bundle(MODEL), "--chat", cwd=tmp_path)
    assert done.returncode != 0
    assert "a conversation is held by one process" in done.stderr


def test_emulated_processes_say_what_emulated_threads_say(tmp_path: Path) -> None:
    bundle = VaccBundles(tmp_path).bundle(VaccModel(replace(TINY, layers=1, ways=2))).path
    processes = tmp_path / "processes.npy"
    with open_session(bundle) as session:
        wanted = session.complete((5, 6, 7, 8), GenerateOptions(max_tokens=6, keep_logits=True))
    done = torchrun(2, bundle, *ARGUMENTS, "--logits", processes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == list(wanted.tokens)
    assert wanted.logits is not None
    assert np.load(processes).tobytes() == wanted.logits.tobytes()
