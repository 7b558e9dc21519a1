"""Rounds, the gate and the table, with contenders that only say numbers. No times."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS, load_contender
from benchmarks.contenders.base import Contender, Job
from benchmarks.measuring import ContenderError, Plan, Worker, idle_cores, run_rounds
from benchmarks.peers_table import (
    KINDS,
    Figures,
    disagreements,
    figures_of,
    headers_of,
    ratios_of,
    rows_of,
)
from benchmarks.roof import Roof, best_of
from benchmarks.worker import measure_block, serve

PLAN = Plan(rounds=2, prompts=(4, 8), steps=3, seconds=0.0, attempts=3)
ROOF = Roof(10.0, {"fp32": 100.0, "bf16": 200.0, "int8": 400.0})


@dataclass
class Scripted:
    """Answers with the loads that a test gives it, and writes down when it was asked."""

    name: str
    dtype: str = "fp32"
    loads: Sequence[float] = ()
    seconds: float = 0.5
    fails_at: int = 0
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loads: Iterator[float] = iter(self.loads)
        self._asked = 0

    def ask(self, do: str, **told: object) -> dict[str, object]:
        self._asked += 1
        if self._asked == self.fails_at:
            raise ContenderError("it fell over")
        if do == "memory":
            return {"peak": 5_000_000}
        if do == "roof":
            self.order.append("roof")
            return {"roof": {"bandwidth": 10.0, "peaks": dict(ROOF.peaks)}, "others": 0.0}
        self.order.append(f"{self.name} {told['prompt']}")
        load = next(self._loads, 0.0)
        return {"prefill": [self.seconds, load], "decode": [self.seconds / 10, 0.0], "first": 7}

    def settle(self) -> None:
        self.order.append("settled")


def test_each_round_takes_a_block_of_each() -> None:
    order: list[str] = []
    ours, peer, roof = (Scripted(name, order=order) for name in ("ours", "torch", "roof"))
    said: list[str] = []
    series, roofs = run_rounds([ours, peer], roof, PLAN, say=said.append)
    a_round = ["roof", "ours 4", "ours 8", "torch 4", "torch 8"]
    assert [one for one in order if one != "settled"] == 2 * a_round
    assert order.count("settled") == len(order) // 2
    assert [len(one.prefill[4]) for one in series] == [2, 2]
    assert [one.peak for one in series] == [5_000_000, 5_000_000]
    assert len(roofs) == len(said) == 2


def test_a_block_under_load_is_repeated_and_not_counted() -> None:
    loaded = Scripted("ours", loads=[0.9, 0.0])
    (series,), _ = run_rounds([loaded], Scripted("roof"), PLAN, say=print)
    assert [block.others for block in series.prefill[4]] == [0.9, 0.0, 0.0]
    found = figures_of(series, "fp32", rounds=2)
    assert (found.is_clean, found.others) == (True, 0.0)


def test_what_stays_under_load_is_marked() -> None:
    loaded = Scripted("ours", loads=[0.9] * 6)
    (series,), _ = run_rounds([loaded], Scripted("roof"), PLAN, say=print)
    assert len(series.prefill[4]) == 3 + 1
    found = figures_of(series, "fp32", rounds=2)
    assert (found.is_clean, found.others) == (False, 0.9)
    (row,) = rows_of([found], None, PLAN.prompts)
    assert row[-1] == "0.90, under load"


def test_one_that_fails_takes_no_further_part() -> None:
    series, _ = run_rounds(
        [Scripted("ours", fails_at=1), Scripted("torch")], Scripted("roof"), PLAN, say=print
    )
    assert [one.problem for one in series] == ["it fell over", ""]
    found = [figures_of(one, "fp32", rounds=2) for one in series]
    assert rows_of(found, None, PLAN.prompts)[0][:3] == ["ours", "fp32", "it fell over"]
    assert ratios_of(found) == []


def figures(name: str, dtype: str, ms: float, speed: float, *, kind: str = "fp32") -> Figures:
    return Figures(
        name=name,
        dtype=dtype,
        kind=kind,
        prefill_ms={4: ms},
        tokens_per_second={4: speed},
        peak_bytes=int(1e6 * ms),
        others=0.0,
        is_clean=True,
        first={4: 7},
    )


def test_ratios_are_to_the_best_peer_of_each_column() -> None:
    found = ratios_of(
        [
            figures("ours", "fp32", 10.0, 30.0),
            figures("torch", "fp32", 20.0, 10.0),
            figures("openvino", "fp32", 40.0, 60.0),
            figures("openvino", "bf16", 1.0, 999.0, kind="bf16"),
            figures("ours", "int8", 1.0, 1.0, kind="int8"),
        ]
    )
    (ratios,) = found
    assert (ratios.dtype, ratios.kind) == ("fp32", "fp32")
    assert (ratios.prefill, ratios.decode, ratios.memory) == ({4: 2.0}, {4: 0.5}, 2.0)


def test_a_row_has_a_cell_for_each_header() -> None:
    every = [figures("ours", "fp32", 10.0, 30.0), figures("torch", "fp32", 20.0, 10.0)]
    rows = rows_of(every, figures("floor", "fp32", 5.0, 90.0), (4,))
    assert [len(row) for row in rows] == [len(headers_of((4,)))] * 4
    assert rows[-1] == ["ours fp32 against the best peer", "", "2.00x", "3.00x", "2.00x", ""]


def test_another_first_token_is_told() -> None:
    every = [figures("torch", "fp32", 1.0, 1.0), figures("ours", "fp32", 1.0, 1.0)]
    assert disagreements(every) == []
    other = Figures(**{**vars(every[1]), "first": {4: 8}})
    (said,) = disagreements([every[0], other])
    assert said == "ours fp32 puts token 8 first after 4 tokens, torch 7"


def test_the_roof_is_the_best_that_was_seen() -> None:
    other = Roof(20.0, {"fp32": 90.0, "bf16": 250.0, "int8": 1.0})
    assert best_of([ROOF, other]) == Roof(20.0, {"fp32": 100.0, "bf16": 250.0, "int8": 400.0})
    assert ROOF.seconds("fp32", operations=1000, moved=10) == 10
    assert ROOF.seconds("int4", operations=1000, moved=50) == 5


def test_every_contender_says_what_it_is(tmp_path: Path) -> None:
    for name in CONTENDERS:
        contender = load_contender(name)
        assert set(contender.dtypes.values()) <= set(KINDS)
        assert contender.install or not contender.modules
        job = Job(tmp_path, tmp_path, "fp32", threads=1, window=8, context=16)
        assert contender(job).job == job


class Counting(Contender):
    """Counts what it is asked."""

    dtypes = {"fp32": "fp32"}  # noqa: RUF012 - a test's own
    prompts: tuple[int, ...] = ()
    steps = 0

    def make(self) -> None: ...

    def load(self) -> None: ...

    def prefill(self, tokens: Sequence[int]) -> int:
        self.prompts = (*self.prompts, len(tokens))
        return 3

    def step(self, token: int) -> int:
        assert 0 <= token < 500
        self.steps += 1
        return 4


def test_a_block_is_a_prompt_and_tokens_after_it(tmp_path: Path) -> None:
    contender = Counting(Job(tmp_path, tmp_path, "fp32", threads=1, window=8, context=16))
    found = measure_block(contender, prompt=5, steps=3, seconds=0.0)
    assert (contender.prompts, contender.steps, found["first"]) == ((5,), 3, 3)
    assert list(found) == ["prefill", "decode", "first"]


def test_a_worker_answers_each_line_and_tells_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"do": "double", "n": 4}\n{"do": "fail"}\n'))
    replies = io.StringIO()
    handlers = {
        "double": lambda asked: {"n": 2 * asked["n"]},
        "fail": lambda asked: {"n": asked["nothing"]},
    }
    serve(handlers, replies)
    assert list(map(json.loads, replies.getvalue().splitlines())) == [
        {"ready": True},
        {"n": 8},
        {"error": "KeyError: 'nothing'"},
    ]


@pytest.mark.slow
def test_a_process_measures_the_roof_and_sleeps_afterwards(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with closing(Worker("roof", 1, log)) as worker:
        found = worker.ask("roof")["roof"]
        worker.settle()
        assert idle_cores([worker], seconds=0.2)["roof "] < 0.5
        with pytest.raises(ContenderError, match="KeyError"):
            worker.ask("dance")
    assert isinstance(found, dict)
    assert set(found["peaks"]) == {"fp32", "bf16", "int8"}
    assert Roof(**found).bandwidth > 0
