"""One contender in a process of its own, told what to do: a JSON object a line, in and out.

    python -m benchmarks.worker make ours '{"checkpoint": ...}'      converts or builds, and ends
    python -m benchmarks.worker serve ours '{"checkpoint": ...}'     answers until stdin ends

    {"do": "block", "prompt": 128, "steps": 16, "seconds": 0.3}
        -> {"prefill": [0.4, 0.01], "decode": [0.07, 0.02], "first": 17}       seconds, others
    {"do": "roof"}   -> {"roof": {...}, "others": 0.01}                        of `roof` alone
    {"do": "memory"} -> {"peak": 2628000000}

What libraries print goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TextIO

import numpy as np

from benchmarks.contenders import load_contender
from benchmarks.contenders.base import Contender, Job
from compiler.measuring import measured, peak_resident_bytes, repeated

Answer = Mapping[str, object]
# Every vocabulary here is larger.
_LEAST_VOCABULARY = 500


def measure_block(contender: Contender, *, prompt: int, steps: int, seconds: float) -> Answer:
    """A prompt again and again for so long, then tokens after it; medians, and loads of others."""
    drawn = np.random.default_rng(prompt).integers(0, _LEAST_VOCABULARY, prompt + steps).tolist()
    tokens, following = drawn[:prompt], drawn[prompt:]
    firsts: list[int] = []

    def prefill() -> float:
        began = time.perf_counter()
        firsts.append(contender.prefill(tokens))
        return time.perf_counter() - began

    def step(token: int) -> float:
        began = time.perf_counter()
        contender.step(token)
        return time.perf_counter() - began

    filled = measured(repeated(prefill, seconds=seconds))
    decoded = measured(lambda: median([step(token) for token in following]))
    return {"prefill": filled, "decode": decoded, "first": firsts[-1]}


def contender_from(name: str, job: str) -> Contender:
    """As the command line names it."""
    fields = json.loads(job)
    places = {key: Path(fields.pop(key)) for key in ("checkpoint", "folder")}
    return load_contender(name)(Job(**places, **fields))


def serve(handlers: Mapping[str, Callable[[Mapping[str, int]], Answer]], replies: TextIO) -> None:
    """Answer until stdin ends; what goes wrong is an answer, too."""
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = handlers[asked.pop("do")](asked)
        except Exception as error:  # the process's boundary: the reader shows it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=replies, flush=True)


def _contender_handlers(contender: Contender) -> Mapping[str, Callable[..., Answer]]:
    contender.load()
    return {
        "block": lambda asked: measure_block(contender, **asked),
        "memory": lambda _: {"peak": peak_resident_bytes()},
    }


def _roof_handlers(threads: int) -> Mapping[str, Callable[..., Answer]]:
    from benchmarks.roof import roof_block

    block = roof_block(threads)

    def roof(_: object) -> Answer:
        found, others = measured(block)
        return {"roof": asdict(found), "others": others}

    return {"roof": roof, "memory": lambda _: {"peak": peak_resident_bytes()}}


def main() -> None:
    """As the module's docstring says."""
    task, name, job = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if name == "roof":
        serve(_roof_handlers(int(job)), replies)
        return
    contender = contender_from(name, job)
    if task == "make":
        contender.make()
        return
    serve(_contender_handlers(contender), replies)


if __name__ == "__main__":
    main()
