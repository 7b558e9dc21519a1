"""Work in child processes: results, errors, deaths, and what a child leaves."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest
from compiler_process import alive

from compiler.contracts.errors import ConfigError, MachineLacks
from compiler.registry import resolve_target
from compiler.workflows import processes
from compiler.workflows.processes import run_isolated, run_parallel, scratch_in


def test_results_come_in_the_order_of_the_calls() -> None:
    assert run_parallel(pow, [(2, 5), (3, 2), (7, 1)], workers=2) == [32, 9, 7]


def test_a_child_is_another_process_with_its_own_temporary_folder() -> None:
    pid = run_isolated(os.getpid)
    folder = Path(run_isolated(tempfile.gettempdir))
    made = Path(run_isolated(tempfile.mkdtemp))
    assert pid != os.getpid()
    assert folder.parent == made.parent.parent == Path(tempfile.gettempdir())
    assert folder.name.startswith("graphlower-")
    assert not folder.exists()
    assert not made.exists()


def test_temporary_files_lie_in_the_scratch_folder_while_it_is_named(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    with scratch_in(tmp_path / "deep" / "scratch"):
        inside = Path(run_isolated(tempfile.mkdtemp))
        with tempfile.TemporaryDirectory() as own:
            assert Path(own).parent == tmp_path / "deep" / "scratch"
    assert inside.parent.parent == tmp_path / "deep" / "scratch"
    assert tempfile.gettempdir() == before
    with scratch_in(None):
        assert tempfile.gettempdir() == before


def test_a_scratch_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="intermediate files cannot be made") as caught,
        scratch_in(tmp_path / "file" / "scratch"),
    ):
        pytest.fail("entered")
    assert caught.value.where == "workspace.work_dir"


def test_a_child_ignores_the_terminals_interrupt() -> None:
    assert run_isolated(signal.getsignal, signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_an_error_of_a_child_keeps_its_fields() -> None:
    with pytest.raises(ConfigError) as caught:
        run_isolated(resolve_target, "lvm")
    with pytest.raises(ConfigError) as direct:
        resolve_target("lvm")
    assert vars(caught.value) == vars(direct.value)
    assert caught.value.hint


def test_a_child_that_is_killed_is_the_machines_fault() -> None:
    with pytest.raises(MachineLacks, match="a worker process died") as caught:
        run_isolated(signal.raise_signal, signal.SIGKILL)
    assert caught.value.code == "worker-died"
    assert "memory" in str(caught.value.hint)


def test_a_failure_ends_the_other_workers_and_what_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call starts a process and waits for it, the other fails: neither process is left."""
    pids = tmp_path / "pids"
    forever = f"echo $$ >> {pids}; exec sleep 600"
    started: list[psutil.Process] = []
    end = processes._end

    def note_and_end(pool: ProcessPoolExecutor) -> None:
        while not pids.exists():
            time.sleep(0.01)
        started.extend(psutil.Process().children(recursive=True))
        end(pool)

    monkeypatch.setattr(processes, "_end", note_and_end)
    with pytest.raises(FileNotFoundError):
        run_parallel(
            subprocess.check_call, [(["sh", "-c", forever],), (["/no/such/program"],)], workers=2
        )
    (sleeping,) = (int(line) for line in pids.read_text().split())
    assert sleeping in [process.pid for process in started]
    workers = [p.pid for p in started if p.pid != sleeping]
    assert alive([sleeping]) == []
    assert len(workers) >= 2


def test_an_interrupt_while_children_start_is_not_lost() -> None:
    code = (
        "import signal, sys, time\n"
        "from compiler.workflows import processes\n"
        "try:\n"
        "    with processes._interrupts_held():\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        print('held', flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("held\ninterrupted\n", "")
