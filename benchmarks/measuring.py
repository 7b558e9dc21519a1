"""Contenders block by block: each in its process, one at a time, under the gate of the load.

A round takes one block of each contender, so that what drifts slowly hits all of them. A block
under load is repeated at once, and marked where no attempt is left.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.contenders.base import Job
from benchmarks.roof import Roof
from compiler.measuring import Block, Blocks
from compiler.measuring.blocks import counted

_ROOT = Path(__file__).parents[1]


_SETTLE_SECONDS, _SETTLE_LOOKS = 0.05, 20


class ContenderError(Exception):
    """A contender ended, or said what went wrong."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Blocks that each figure is the median of.
        prompts: Lengths.
        steps: Tokens that are appended after each prompt.
        seconds: Least length of a block of prompts.
        attempts: Of a block in a round.
    """

    rounds: int = 5
    prompts: tuple[int, ...] = (128, 1024)
    steps: int = 16
    seconds: float = 0.3
    attempts: int = 4


class Asked(Protocol):
    """What answers: a process, or what a test puts in its place."""

    name: str
    dtype: str

    def ask(self, do: str, **told: object) -> dict[str, object]:
        """One question, one answer.

        Raises:
            ContenderError: There is none.
        """
        ...

    def settle(self) -> None:
        """Wait until it uses no processor."""
        ...


class Worker:
    """A contender's process, kept alive; it ends when this is closed.

    Args:
        name: Of the contender, or `roof`.
        job: What it serves; of `roof` the threads.
        log: Where its stderr goes.
    """

    def __init__(self, name: str, job: Job | int, log: Path) -> None:
        self.name = name
        self.dtype = job.dtype if isinstance(job, Job) else ""
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                _command("serve", name, job),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=_environment(),
                cwd=_ROOT,
            )
        self._answer()

    def ask(self, do: str, **told: object) -> dict[str, object]:
        """One question, one answer."""
        assert self._process.stdin is not None, "it was opened as a pipe"
        with suppress(BrokenPipeError):
            print(json.dumps({"do": do, **told}), file=self._process.stdin, flush=True)
        return self._answer()

    def settle(self) -> None:
        """Wait until its threads sleep: some spin for a while after the last call."""
        for _ in range(_SETTLE_LOOKS):
            used = self.cpu_seconds()
            time.sleep(_SETTLE_SECONDS)
            if self.cpu_seconds() == used:
                return

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None, "it was opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(f"the process ended; its log is {self._log}")
        answer: dict[str, object] = json.loads(line)
        if "error" in answer:
            raise ContenderError(str(answer["error"]))
        return answer


@dataclass
class Series:
    """What a contender has given so far, blocks by prompt.

    Attributes:
        name: The contender's.
        dtype: Its spelling.
        prefill: Seconds.
        decode: Seconds of a token.
        first: The most probable token after each prompt.
        peak: Bytes; 0 before the end.
        problem: Why there is no more; empty where all went well.
    """

    name: str
    dtype: str
    prefill: dict[int, list[Block[float]]] = field(default_factory=dict)
    decode: dict[int, list[Block[float]]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    peak: int = 0
    problem: str = ""

    def counted(self, what: str, prompt: int, rounds: int) -> Blocks[float] | None:
        """The blocks of `prefill` or `decode` that count; None where there are none."""
        blocks = (self.prefill if what == "prefill" else self.decode).get(prompt)
        return counted(blocks, wanted=rounds) if blocks else None


def make(name: str, job: Job, log: Path) -> None:
    """Convert or build in a process that ends.

    Raises:
        ContenderError: It failed.
    """
    with log.open("ab") as stream:
        done = subprocess.run(
            _command("make", name, job),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=_environment(),
            cwd=_ROOT,
            check=False,
        )
    if done.returncode != 0:
        raise ContenderError(f"it could not be made; the log is {log}")


def run_rounds(
    contenders: Sequence[Asked], roof: Asked, plan: Plan, *, say: Callable[[str], None]
) -> tuple[list[Series], list[Block[Roof]]]:
    """All rounds; a contender that fails takes no further part."""
    series = [Series(one.name, one.dtype) for one in contenders]
    roofs: list[Block[Roof]] = []
    for number in range(1, plan.rounds + 1):
        say(f"round {number} of {plan.rounds}")
        roofs.append(_roof_block(roof))
        for one, found in zip(contenders, series, strict=True):
            if not found.problem:
                _measure_round(one, found, plan)
    for one, found in zip(contenders, series, strict=True):
        if found.problem:
            continue
        try:
            found.peak = _integer(one.ask("memory")["peak"])
        except ContenderError as error:
            found.problem = str(error)
    return series, roofs


def idle_cores(workers: Sequence[Worker], *, seconds: float = 1.0) -> dict[str, float]:
    """What each contender burns while it is asked nothing."""
    before = [worker.cpu_seconds() for worker in workers]
    time.sleep(seconds)
    return {
        f"{worker.name} {worker.dtype}": (worker.cpu_seconds() - used) / seconds
        for worker, used in zip(workers, before, strict=True)
    }


def _measure_round(one: Asked, found: Series, plan: Plan) -> None:
    for prompt in plan.prompts:
        try:
            _measure_prompt(one, found, prompt, plan)
        except ContenderError as error:
            found.problem = str(error)
            return


def _measure_prompt(one: Asked, found: Series, prompt: int, plan: Plan) -> None:
    for _ in range(plan.attempts):
        answer = one.ask("block", prompt=prompt, steps=plan.steps, seconds=plan.seconds)
        prefill, decode = _block(answer["prefill"]), _block(answer["decode"])
        found.prefill.setdefault(prompt, []).append(prefill)
        found.decode.setdefault(prompt, []).append(decode)
        found.first[prompt] = _integer(answer["first"])
        one.settle()
        if prefill.is_clean and decode.is_clean:
            return


def _roof_block(roof: Asked) -> Block[Roof]:
    answer = roof.ask("roof")
    roof.settle()
    found, others = answer["roof"], answer["others"]
    assert isinstance(found, dict), "a roof is an object"
    assert isinstance(others, float), "a load is a number"
    return Block(Roof(**found), others)


def _block(answer: object) -> Block[float]:
    assert isinstance(answer, list), "seconds, and the load of others"
    return Block(*answer)


def _integer(answer: object) -> int:
    assert isinstance(answer, int), f"{answer} is no integer"
    return answer


def _command(task: str, name: str, job: Job | int) -> list[str]:
    told = str(job) if isinstance(job, int) else json.dumps(asdict(job), default=str)
    return [sys.executable, "-m", "benchmarks.worker", task, name, told]


def _environment() -> dict[str, str]:
    """The sources first; nothing is looked up on the network."""
    paths = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
    kept = {name: value for name, value in os.environ.items() if name != "TVM_NUM_THREADS"}
    return {**kept, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
