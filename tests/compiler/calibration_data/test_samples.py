"""The section `dataset` as tokens, from end to end, with a tokenizer of bytes."""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from compiler_process import ROOT

from compiler.calibration_data import CalibrationSamples, ReadLimits, calibration_samples
from compiler.calibration_data.samples import MOST_TOKENS
from compiler.calibration_data.windows import CANDIDATES
from compiler.config.quantize_section import Dataset
from compiler.contracts.errors import CompilerError, ConfigError, DatasetError


@dataclass(frozen=True)
class Spec:
    """A section as a caller without `compiler.config` may give it."""

    type: str = "huggingface"
    name: str | None = None
    path: str | None = None
    nsamples: int = 3
    seqlen: int = 20
    seed: int = 0


def tokenize(text: str) -> list[int]:
    return list(text.encode())


def samples(spec: Spec | Dataset, base: Path, notes: list[str] | None = None) -> CalibrationSamples:
    said = [] if notes is None else notes
    return calibration_samples(spec, base=base, tokenize=tokenize, note=said.append)


def shown(found: CalibrationSamples) -> list[str]:
    return [bytes(window.astype(np.uint8)).decode() for window in found.tokens]


def refusal(spec: Spec, base: Path) -> CompilerError:
    with pytest.raises(CompilerError) as caught:
        samples(spec, base)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one file of each kind, each of at least 300 tokens."""
    words = [f"document {number:02} has its words" for number in range(12)]
    lines = [json.dumps({"text": word}) for word in words]
    alpaca = [{"instruction": word, "input": "", "output": f"{n}"} for n, word in enumerate(words)]
    rows = [f"{n},{word},a,b,c,d,A," for n, word in enumerate(words)]
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "c4-train.json").write_text("\n".join(lines))
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca))
    (tmp_path / "notes.txt").write_text("\n".join(words))
    with zipfile.ZipFile(tmp_path / "ceval.zip", "w") as archive:
        header = "id,question,A,B,C,D,answer,explanation"
        archive.writestr("val/a.csv", "\n".join([header, *rows]))
    return tmp_path


KINDS = {
    "c4: c4-train.json": Spec(name="c4", path="c4"),
    "ceval: ceval.zip": Spec(name="ceval", path="ceval.zip"),
    "alpaca: alpaca.json": Spec(name="alpaca", path="alpaca.json"),
    "text: notes.txt": Spec(type="text", path="notes.txt"),
    "jsonl: lines.jsonl": Spec(type="jsonl", path="lines.jsonl"),
}


@pytest.mark.parametrize("source", KINDS)
def test_each_kind_gives_its_windows(data: Path, source: str):
    found = samples(KINDS[source], data)
    assert (found.tokens.shape, found.tokens.dtype) == ((3, 20), np.int64)
    assert found.source == source
    assert all(re.search("docu|ment|word|A. a|B. b", text) for text in shown(found))
    assert not found.tokens.flags.writeable


@pytest.mark.parametrize("source", KINDS)
def test_equal_seeds_give_equal_windows(data: Path, source: str):
    spec = KINDS[source]
    digests = [
        samples(Spec(spec.type, spec.name, spec.path, seed=seed), data).digest for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1]
    assert digests[1] != digests[2]


def test_what_is_chosen_is_fixed(data: Path):
    """Another choice would calibrate another model from the same YAML."""
    assert shown(samples(KINDS["jsonl: lines.jsonl"], data)) == [
        "ent 00 has its words",
        "ument 01 has its wor",
        "ument 02 has its wor",
    ]
    assert shown(samples(KINDS["text: notes.txt"], data)) == [
        "its words\ndocument 0",
        "s words\ndocument 08 ",
        "has its words\ndocume",
    ]


def test_documents_are_joined_by_a_newline(data: Path):
    found = samples(Spec(name="alpaca", path="alpaca.json", nsamples=1, seqlen=32), data)
    assert shown(found)[0].count("\n") in (1, 2)
    whole = samples(Spec(name="alpaca", path="alpaca.json", nsamples=1, seqlen=200), data)
    assert shown(whole)[0].startswith(
        "document 00 has its words\n0\ndocument 01 has its words\n1\n"
    )


def test_a_digest_is_of_tokens_and_shape():
    flat = np.arange(8)
    digests = {
        CalibrationSamples(tokens, source="").digest
        for tokens in (flat.reshape(2, 4), flat.reshape(4, 2), flat[::-1].reshape(2, 4))
    }
    assert len(digests) == 3
    known = CalibrationSamples(flat.reshape(2, 4), source="a")
    assert known.digest == CalibrationSamples(flat.reshape(2, 4).astype(">i8"), source="b").digest


def test_a_file_with_too_little_is_refused(data: Path):
    found = {
        source: refusal(Spec(spec.type, spec.name, spec.path, nsamples=500), data).message
        for source, spec in KINDS.items()
        if source.startswith(("text", "jsonl"))
    }
    assert found == {
        "text: notes.txt": "it holds 311 tokens, 15 windows of 20; 500 windows of 20 are asked for",
        "jsonl: lines.jsonl": "it holds 12 documents, 12 of them with 20 tokens or more;"
        " 500 windows of 20 are asked for",
    }
    error = refusal(Spec(type="text", path="notes.txt", nsamples=500), data)
    assert error.where == str(data / "notes.txt")
    assert error.hint == "write `nsamples: 15`, a smaller `seqlen`, or name more data"


def test_windows_that_nothing_fills_are_refused(data: Path):
    hints = [
        refusal(Spec(type=kind, path=path, seqlen=1000), data).hint
        for kind, path in (("text", "notes.txt"), ("jsonl", "lines.jsonl"))
    ]
    assert hints == [
        "write a `seqlen` of at most 311, or name more data",
        "write a `seqlen` of at most 25, or name more data",
    ]
    (data / "blank.jsonl").write_text("\n\n")
    error = refusal(Spec(type="jsonl", path="blank.jsonl"), data)
    assert (error.code, error.hint) == ("too-little", "name data that holds text")


def test_without_a_path_the_default_text_is_taken_and_said(tmp_path: Path):
    notes: list[str] = []
    found = samples(Dataset(nsamples=5, seqlen=512), tmp_path, notes)
    assert found.tokens.shape == (5, 512)
    assert found.source == "the text that comes with the package"
    assert notes == [
        "no dataset.path: calibrating on the text that comes with the package,"
        " 5 windows of 512 tokens"
    ]


def test_the_default_text_gives_what_it_holds(tmp_path: Path):
    notes: list[str] = []
    found = samples(Dataset(name="c4", seqlen=1024), tmp_path, notes)
    count = len(found.tokens)
    assert 40 < count < 64
    assert notes == [
        "no dataset.path, though dataset.name is c4: calibrating on the text that comes with the"
        f" package, {count} windows of 1024 tokens (128 are asked for)"
    ]
    error = refusal(Spec(seqlen=100_000), tmp_path)
    assert error.where == "the text that comes with the package"
    assert error.code == "too-little"


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_file_of_ones_own_needs_a_path(tmp_path: Path, kind: str):
    error = refusal(Spec(type=kind), tmp_path)
    assert isinstance(error, ConfigError)
    assert (error.message, error.where) == (f"`type: {kind}` needs a file", "dataset.path")


def test_more_tokens_than_memory_is_meant_for_are_refused(tmp_path: Path):
    error = refusal(Spec(nsamples=1 << 14, seqlen=1 << 13), tmp_path)
    assert error.message == "16384 windows of 8192 tokens are more than 67108864"
    assert error.hint == "write `nsamples: 8192` or less"


def test_limits_reach_the_readers(data: Path):
    spec = KINDS["text: notes.txt"]
    limits = ReadLimits(total_bytes=100)
    with pytest.raises(DatasetError, match="100 bytes of it did not give the windows"):
        calibration_samples(spec, base=data, tokenize=tokenize, note=print, limits=limits)


def test_the_documented_limits_are_those_of_the_code():
    document = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    limits = ReadLimits()
    rows = [
        f"| {limits.document_bytes >> 20} MiB |",
        f"| {limits.total_bytes >> 30} GiB |",
        f"| {limits.archive_bytes >> 20} MiB, {limits.member_bytes >> 20} MiB, {limits.members} |",
        f"| {limits.expansion} |",
        f"At most {MOST_TOKENS} tokens",
        f"`{CANDIDATES} * nsamples` windows",
    ]
    assert [row for row in rows if row not in document] == []


def test_a_refusing_tokenizer_leaves_no_file_open(data: Path):
    def refuse(_: str) -> list[int]:
        raise ConfigError("no tokenizer")

    for spec in KINDS.values():
        with pytest.raises(ConfigError, match="no tokenizer"):
            calibration_samples(spec, base=data, tokenize=refuse, note=print)
