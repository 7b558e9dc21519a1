"""Quantization on a trained model and at a true size: what it costs, and what it saves."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from acceptance_table import Table
from checkpoint_factory import write_half_billion
from compiler_process import ROOT, command, environment, run_json
from process_memory import peak_of
from pydantic import TypeAdapter

from compiler.checkpoints import LinearRecord
from compiler.contracts.evaluation import Evaluation

pytestmark = pytest.mark.accept

MODELS = ROOT / "models"
# Python's own documentation: no model here was calibrated on it.
TOKENS = 20480
LINEARS = 210
# Every row's logits at once, so that a text is read in windows; kernels and weights stay the same.
ALL_ROWS = ("--set", "frontend.model_kwargs.insert_slice=false")
FOUR_BITS = ("--set", "frontend.quantize.calib_args.bits=4")
GROUPS = (*FOUR_BITS, "--set", "frontend.quantize.calib_args.group_size=64")
FLOAT_HEAD = ("--set", "frontend.quantize.include=[]")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: As the table shows it.
        yaml: In `models/`.
        options: Of the command line.
        most: By which share its perplexity may exceed transformers'; None where a comparison with
            another line decides.
    """

    name: str
    yaml: str
    options: Sequence[str] = ()
    most: float | None = None


ROWS = (
    Row("fp32", "smollm2-135m", most=1e-5),
    Row("bf16", "smollm2-135m", ("--set", "backend.dtype=bf16"), most=0.005),
    Row("w8a16, head bf16", "smollm2-135m-w8a16", FLOAT_HEAD, most=0.005),
    Row("w8a16, head int8", "smollm2-135m-w8a16", most=0.005),
    Row("w8a8, k and v floats", "smollm2-135m-w8a8", most=0.02),
    Row("w8a8 of all", "smollm2-135m-w8a8", ("--set", "frontend.quantize.exclude=[]")),
    Row("w16kv8", "smollm2-135m-kv8", most=0.005),
    Row("w8a16kv8", "smollm2-135m-w8a16", ("--set", "frontend.quantize.type=w8a16kv8"), most=0.01),
    Row("w8a16_gptq", "smollm2-135m-gptq", most=0.005),
    Row("4 bits, rounded", "smollm2-135m-w8a16", (*FLOAT_HEAD, *FOUR_BITS)),
    Row("4 bits, gptq", "smollm2-135m-gptq", FOUR_BITS),
    Row("4 bits in groups of 64, rounded", "smollm2-135m-w8a16", (*FLOAT_HEAD, *GROUPS)),
    Row("4 bits in groups of 64, gptq", "smollm2-135m-gptq", GROUPS),
)
# The lines that GPTQ is to beat, and by what factor of the loss at least.
PAIRS = (
    ("w8a16_gptq", "w8a16, head bf16", 1.0),
    ("4 bits, gptq", "4 bits, rounded", 0.75),
    ("4 bits in groups of 64, gptq", "4 bits in groups of 64, rounded", 0.75),
)
YAML = """\
name: Qwen1.5-0.5B-int8-tp1-1024-1280
frontend:
  type: huggingface
  checkpoint: ./checkpoint
  shape: {input_ids: [[1024], [1280]]}
  quantize: {type: w8a16}
backend: {type: tvm_llvm, dtype: int8}
workspace: {path: ./workspace}
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gone afterwards: gigabytes."""
    path = tmp_path_factory.mktemp("quantization")
    yield path
    shutil.rmtree(path)


def evaluated(row: Row, folder: Path, text: Path) -> Evaluation:
    """Build and evaluate one line; the bundle is removed."""
    yaml = MODELS / f"{row.yaml}.yaml"
    bundle = folder / "bundle"
    built = run_json("build", yaml, "-o", bundle, *ALL_ROWS, *row.options, cwd=folder)
    linears = TypeAdapter(list[LinearRecord]).validate_python(built["calibrated"])
    worse = [one.module for one in linears if not one.error < one.nearest_error]
    assert not worse, f"GPTQ gained nothing on {worse}"
    assert len(linears) == (LINEARS if "gptq" in row.name else 0)
    found = run_json("evaluate", bundle, "--text", text, "--tokens", str(TOKENS), cwd=folder)
    shutil.rmtree(bundle)
    return TypeAdapter(Evaluation).validate_python(
        {field.name: found[field.name] for field in fields(Evaluation)}
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "topics.txt"
    file.write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def losses() -> dict[str, float]:
    """The increase of perplexity of each row that was measured."""
    return {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_a_type_costs(
    table: Table, folder: Path, text: Path, losses: dict[str, float], row: Row
) -> None:
    found = evaluated(row, folder, text)
    against = found.reference
    assert against is not None
    assert found.tokens >= 20_000
    losses[row.name] = against.perplexity_increase
    said = (
        f"perplexity {found.perplexity:.4f} against {against.perplexity:.4f} "
        f"({against.perplexity_increase:+.3%}), KL {against.mean_kl:.5f}, "
        f"same token {against.top1_agreement:.2%}, {found.tokens} tokens"
    )
    what = f"SmolLM2-135M, {row.name}, against transformers in float32"
    if row.most is None:
        table.note(what, measured=said)
        return
    is_met = losses[row.name] <= row.most
    table.judge(what, wanted=f"within {row.most:.3%}", measured=said, is_met=is_met)


@pytest.mark.parametrize(("gptq", "nearest", "factor"), PAIRS)
def test_gptq_against_rounding(
    table: Table, losses: dict[str, float], gptq: str, nearest: str, factor: float
) -> None:
    table.judge(
        f"SmolLM2-135M, {gptq} against rounding to nearest",
        wanted=f"increase at most {factor:g} of rounding's",
        measured=f"{losses[gptq]:+.3%} against {losses[nearest]:+.3%}",
        is_met=losses[gptq] <= max(factor * losses[nearest], 0.0),
    )


@pytest.mark.parametrize(
    ("head", "include", "most_stored", "most_resident"),
    [("bf16", "[]", 650_000_000, 950_000_000), ("int8", "[lm_head]", 500_000_000, 750_000_000)],
)
def test_int8_stays_int8_at_true_size(
    table: Table, folder: Path, head: str, include: str, most_stored: int, most_resident: int
) -> None:
    write_half_billion(folder / "checkpoint")
    (folder / "model.yaml").write_text(YAML)
    peak, built = measured(
        folder, "build", "model.yaml", "--set", f"frontend.quantize.include={include}"
    )
    bundle = Path(str(built["bundle"]))
    stored = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    # Fills the context to its last position: every page of the cache is touched.
    tokens = ",".join(str(1 + number % 1000) for number in range(1024))
    resident, _ = measured(
        folder, "run", str(bundle), "--token-ids", tokens, "--max-tokens", "256", "--threads", "2"
    )
    what = f"Qwen1.5-0.5B's shape, w8a16 with a head in {head}, [[1024], [1280]]"
    for said, found, most in (
        ("bundle on disk", stored, most_stored),
        ("resident while it runs, seen from outside", resident, most_resident),
        ("peak of quantizing and building, seen from outside", peak, 1_500_000_000),
    ):
        table.judge(
            f"{what}: {said}",
            wanted=f"< {most / 1e9:.2f} GB",
            measured=f"{found / 1e9:.3f} GB",
            is_met=found < most,
        )


def measured(folder: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    """Peak resident bytes of a command, and what it says."""
    output = folder / "result.json"
    with output.open("w") as stream:
        running = subprocess.Popen(
            command(*arguments, "--json"), cwd=folder, env=environment(), stdout=stream
        )
        peak = peak_of(running, output)
    return peak, json.loads(output.read_text())
