"""`bench` on the command line: what it prints and refuses."""

import json
from pathlib import Path

import pytest
from built_bundles import BuiltBundles

from compiler.cli import main
from compiler.cli.bench_tables import print_bench
from compiler.terminal import Terminal
from compiler.workflows.bench import (
    BenchResult,
    Figure,
    KernelRow,
    LengthFigures,
    PhaseProfile,
)

CLEAN = Figure(ms=20.0, others=0.02, is_clean=True, dropped=0)
LOADED = Figure(ms=4.0, others=0.5, is_clean=False, dropped=15)
RESULT = BenchResult(
    bundle="d" * 64,
    name="tiny",
    target="some",
    threads=2,
    window=32,
    context=48,
    peak_resident_bytes=1_230_000_000,
    read_bandwidth=2e10,
    bandwidth_others=0.3,
    bandwidth_is_clean=False,
    lengths=(
        LengthFigures(32, CLEAN, LOADED, 250.0, 40_000_000, 2.0, 2.0),
        LengthFigures(48, CLEAN),
    ),
    profiles=(
        PhaseProfile(
            phase="decode",
            prompt_tokens=32,
            ms=4.0,
            watched_ms=5.0,
            others=0.01,
            is_clean=True,
            virtual_machine_ms=0.999,
            kernels=(
                KernelRow("linear", "8x8 float32", 2, 3.0, 0.75, 30_000_000, 1.5, 2.0),
                KernelRow("cast", "1x8 float32", 3, 0.001, 0.00025, 0, 0.0, None),
            ),
        ),
    ),
)


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    print_bench(RESULT, Terminal(is_json=False, is_quiet=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "bundle                      tiny, some",
        "window, context             32, 48",
        "peak memory                 1.23 GB",
        "memory read, measured here  20.0 GB/s with 2 threads, under load",
    ]
    rows = [line.split("  ") for line in lines[4:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows if any(row)]
    assert cells[1:3] == [
        ["32", "20", "4", "250.0", "40 MB", "2", "2.00", "0.50, under load"],
        ["48", "20", "-", "-", "-", "-", "-", "0.02"],
    ]
    assert cells[3] == ["decode: a token after 32 tokens, 4 ms (5 ms while its kernels were timed)"]
    assert cells[5:] == [
        ["linear", "8x8 float32", "2", "3", "75.0%", "30 MB", "1.5", "2.00"],
        ["1 others", "3", "0.001", "0.0%"],
        ["virtual machine", "0.999", "25.0%"],
    ]


def test_one_object_is_printed(
    built_bundles: BuiltBundles, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(built_bundles.bundle())
    options = ["--prompt-tokens", "8", "32", "--blocks", "1", "--threads", "1", "--profile"]
    assert main(["bench", bundle, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert list(found) == [
        "bundle",
        "name",
        "target",
        "threads",
        "window",
        "context",
        "peak_resident_bytes",
        "read_bandwidth",
        "bandwidth_others",
        "bandwidth_is_clean",
        "lengths",
        "profiles",
    ]
    assert [one["prompt_tokens"] for one in found["lengths"]] == [8, 32]
    assert list(found["lengths"][0]) == [
        "prompt_tokens",
        "prefill",
        "decode",
        "decode_tokens_per_second",
        "bytes_per_token",
        "floor_ms",
        "over_floor",
    ]
    assert list(found["lengths"][0]["prefill"]) == ["ms", "others", "is_clean", "dropped"]
    assert [one["phase"] for one in found["profiles"]] == ["prefill", "decode"]
    assert {"linear", "attention"} <= {row["name"] for row in found["profiles"][1]["kernels"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "--threads is 0"),
        (["--blocks", "0"], "--blocks is 0"),
        (["--prompt-tokens", "4", "-1"], "--prompt-tokens is -1"),
    ],
)
def test_wrong_numbers(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["bench", "b", *options, "--json"]) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert (error["message"], error["code"]) == (message, "usage")


def test_what_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path), "--json"]) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert error["code"] == "no-bundle"
