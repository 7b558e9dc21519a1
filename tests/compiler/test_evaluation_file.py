"""An evaluation on disk is the one that was written, or none."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.contracts.evaluation import Evaluation, ReferenceFigures
from compiler.evaluation_file import read_evaluation, write_evaluation

FIGURES = ReferenceFigures("torch", 10.0, 0.05, 0.01, 0.25, 0.98, 3)
FOUND = Evaluation("d" * 64, "0123456789abcdef", 300, 32, 10.5, FIGURES)


@pytest.mark.parametrize("found", [FOUND, replace(FOUND, reference=None, note="no checkpoint")])
def test_what_is_written_is_read(tmp_path: Path, found: Evaluation):
    write_evaluation(tmp_path / "x.json", found)
    assert read_evaluation(tmp_path / "x.json") == found
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_is_no_number_is_null_and_measured_again(tmp_path: Path):
    broken = replace(FOUND, perplexity=math.nan, reference=replace(FIGURES, max_kl=math.inf))
    write_evaluation(tmp_path / "x.json", broken)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    tree = json.loads(text, parse_constant=pytest.fail)
    assert (tree["perplexity"], tree["reference"]["max_kl"]) == (None, None)
    assert read_evaluation(tmp_path / "x.json") is None


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff", b'{"bundle": 3}'])
def test_what_is_no_evaluation(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    assert read_evaluation(tmp_path / "x.json") is None
