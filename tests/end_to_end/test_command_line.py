"""The verbs as a user types them: what `--json` prints, what is saved, what is repeatable."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from built_bundles import BuiltBundles
from compiler_process import run_compiler, run_json

pytestmark = pytest.mark.slow

STAGES = ["checkpoint", "trace", "rewrite", "lower", "package"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command-line")


@pytest.fixture(scope="module")
def yaml(built_bundles: BuiltBundles, folder: Path) -> Path:
    return built_bundles.variant(folder)


@pytest.fixture(scope="module")
def built(yaml: Path, folder: Path) -> dict[str, object]:
    """What the first build prints."""
    return run_json("build", yaml, cwd=folder)


@pytest.fixture(scope="module")
def bundle(built: Mapping[str, object]) -> Path:
    return Path(str(built["bundle"]))


def keys_of(value: object) -> list[str]:
    assert isinstance(value, dict)
    return list(value)


def items_of(value: object) -> list:
    assert isinstance(value, list)
    assert value
    return value


def test_build_as_json(built: Mapping[str, object], folder: Path) -> None:
    expected = ["bundle", "digest", "up_to_date", "stages", "passes", "calibrated", "evaluation"]
    assert keys_of(built) == expected
    assert (built["calibrated"], built["evaluation"]) == ([], None)
    assert built["bundle"] == str(folder / "workspace" / "tiny")
    digest = built["digest"]
    assert isinstance(digest, str)
    assert len(digest) == 64
    assert built["up_to_date"] is False
    stages = items_of(built["stages"])
    assert [stage["name"] for stage in stages] == STAGES
    for stage in stages:
        assert keys_of(stage) == ["name", "seconds", "peak_rss_bytes"]
        assert isinstance(stage["seconds"], float)
        assert 10_000_000 < stage["peak_rss_bytes"] < 4_000_000_000
    passes = items_of(built["passes"])
    for record in passes:
        keys = ["name", "phase", "rewrites", "skips", "error", "float64_error"]
        assert keys_of(record) == keys
        assert isinstance(record["error"], float)
        assert isinstance(record["float64_error"], float)
        assert record["phase"] in ("prefill", "decode")
        for skip in record["skips"]:
            assert keys_of(skip) == ["node", "reason"]
    counts = {(p["name"], p["phase"]): p["rewrites"] for p in passes}
    assert counts["insert-strided-slice", "prefill"] == 1
    assert ("insert-strided-slice", "decode") not in counts
    assert counts["plan-kv-cache", "decode"] == 4  # keys and values of two layers
    assert (folder / "workspace" / "logs" / "tiny.log").is_file()


@pytest.mark.usefixtures("built")
def test_a_second_build_is_up_to_date(yaml: Path, folder: Path, bundle: Path) -> None:
    manifest = (bundle / "manifest.json").stat()
    unchanged = (manifest.st_ino, manifest.st_mtime_ns)
    found = run_json("build", yaml, cwd=folder)
    assert found["up_to_date"] is True
    assert (found["bundle"], found["stages"], found["passes"]) == (str(bundle), [], [])
    done = run_compiler("build", yaml, "-o", "workspace/tiny", cwd=folder)
    assert done.stdout == f"{bundle}\n"
    assert f"{bundle} is up to date" in done.stderr
    manifest = (bundle / "manifest.json").stat()
    assert (manifest.st_ino, manifest.st_mtime_ns) == unchanged


def test_run_as_json(bundle: Path, folder: Path) -> None:
    found = run_json("run", bundle, "--prompt", "t3 t1 t4", "--max-tokens", "6", cwd=folder)
    assert keys_of(found) == [
        "prompt_tokens",
        "tokens",
        "text",
        "finish_reason",
        "prefill_seconds",
        "decode_tokens_per_second",
    ]
    tokens = items_of(found["tokens"])
    assert found["prompt_tokens"] == 3
    assert len(tokens) == 6
    assert found["text"] == " ".join(f"t{token}" for token in tokens)
    assert found["finish_reason"] == "length"
    assert isinstance(found["prefill_seconds"], float)
    assert isinstance(found["decode_tokens_per_second"], float)
    ids = run_json("run", bundle, "--token-ids", "3,1,4", "--max-tokens", "6", cwd=folder)
    assert ids["tokens"] == tokens


def test_run_stops_at_a_text(bundle: Path, folder: Path) -> None:
    whole = run_json("run", bundle, "--prompt", "t3 t1 t4", "--max-tokens", "8", cwd=folder)
    stop = f"t{items_of(whole['tokens'])[2]}"
    found = run_json(
        "run", bundle, "--prompt", "t3 t1 t4", "--max-tokens", "8", "--stop", stop, cwd=folder
    )
    text = str(whole["text"])
    assert found["finish_reason"] == "stop"
    assert found["text"] == text[: text.index(stop)]


def test_logits_are_saved_for_every_step(bundle: Path, folder: Path) -> None:
    file = folder / "logits.npy"
    found = run_json(
        "run", bundle, "--token-ids", "5,6,7", "--max-tokens", "9", "--logits", file, cwd=folder
    )
    logits = np.load(file)
    assert (logits.shape, logits.dtype) == ((9, 128), np.dtype(np.float32))
    assert logits.argmax(axis=1).tolist() == found["tokens"]


def test_draws_are_repeatable_by_their_seed(bundle: Path, folder: Path) -> None:
    arguments = ("run", bundle, "--prompt", "t1 t2", "--max-tokens", "12", "--temperature", "1.5")
    first, again = (run_json(*arguments, "--seed", "7", cwd=folder) for _ in range(2))
    other = run_json(*arguments, "--seed", "8", cwd=folder)
    assert first["tokens"] == again["tokens"]
    assert first["tokens"] != other["tokens"]


def test_a_prompt_over_the_context_is_refused(bundle: Path, folder: Path) -> None:
    ids = ",".join(["1"] * 49)
    found = run_json("run", bundle, "--token-ids", ids, cwd=folder, code=2)
    (error,) = items_of(found["errors"])
    assert keys_of(error) == ["code", "message", "where", "hint"]
    assert error["code"] == "context-full"
    assert error["message"] == "the prompt has 49 tokens, the context holds 48"


def test_chat_and_a_stream_of_text(bundle: Path, folder: Path) -> None:
    done = run_compiler(
        "run", bundle, "--chat", "--prompt", "t1", "--max-tokens", "4", "--threads", "1", cwd=folder
    )
    assert len(done.stdout.split()) == 4
    # The template: user t1 end assistant.
    assert done.stderr.startswith("4 tokens read in ")
    assert done.stderr.endswith("ended by length\n")


@pytest.mark.usefixtures("built")
def test_compare_as_json(yaml: Path, folder: Path) -> None:
    found = run_json("compare", yaml, "--targets", "torch,llvm", "--tokens", "4", cwd=folder)
    assert keys_of(found) == ["passed", "comparisons", "ladder", "semantic", "environment"]
    assert found["passed"] is True
    (comparison,) = items_of(found["comparisons"])
    assert keys_of(comparison) == [
        "reference",
        "candidate",
        "level",
        "steps",
        "taps",
        "strips",
        "top1_agreement",
        "top5_agreement",
        "greedy_agreement",
        "near_ties",
        "first_divergence",
        "perplexity",
        "findings",
        "limits",
        "passed",
    ]
    assert (comparison["reference"], comparison["candidate"]) == ("torch", "tvm_llvm")
    assert comparison["level"] == "end-to-end"
    assert (comparison["top1_agreement"], comparison["greedy_agreement"]) == (1.0, 1.0)
    assert (comparison["first_divergence"], comparison["perplexity"]) == (None, None)
    assert (comparison["taps"], comparison["findings"], comparison["passed"]) == ([], [], True)
    steps = items_of(comparison["steps"])
    assert len(steps) == 4 * (len(steps) // 4) >= 16
    for step in steps:
        assert keys_of(step) == [
            "name",
            "status",
            "measures",
            "kl",
            "is_top1_equal",
            "top5_overlap",
            "margin",
            "is_near_tie",
        ]
        assert step["status"] == "pass"
        assert step["is_top1_equal"] is True
        measures = step["measures"]
        assert keys_of(measures) == ["max_abs", "mean_abs", "max_rel", "cosine", "snr_db"]
        assert 0 <= measures["mean_abs"] <= measures["max_abs"] < 1e-3
        assert measures["cosine"] == pytest.approx(1)
    environment = found["environment"]
    assert isinstance(environment, dict)
    assert (environment["model"], environment["window"]) == ("tiny", "32")


@pytest.mark.usefixtures("built")
def test_outputs_are_saved_here_and_compared_there(yaml: Path, folder: Path) -> None:
    file = folder / "outputs.npz"
    options = ("--tokens", "2", "--level", "tap", "--save", file)
    done = run_compiler("compare", yaml, "--targets", "torch", *options, cwd=folder)
    assert done.stdout == "passed\n"
    assert f"saved the outputs of torch: {file}" in done.stderr
    options = ("--against", file, "--level", "tap", "--html", "report.html")
    found = run_json("compare", yaml, *options, cwd=folder)
    (comparison,) = items_of(found["comparisons"])
    assert (comparison["reference"], comparison["candidate"]) == ("outputs.npz", "tvm_llvm")
    assert (found["passed"], len(comparison["taps"])) == (True, 3 + 2 * 17)
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.usefixtures("built")
def test_a_bundle_is_checked_without_its_model(bundle: Path, folder: Path) -> None:
    found = run_json("compare", bundle, "--semantic", cwd=folder)
    assert found["passed"] is True
    refused = run_json("compare", bundle, cwd=folder, code=2)
    (error,) = items_of(refused["errors"])
    assert "--semantic" in error["hint"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [("llvm", "two different targets"), ("torch,lvm", "'lvm'"), ("llvm,tvm_llvm", "two different")],
)
def test_targets_that_cannot_be_compared(
    yaml: Path, folder: Path, targets: str, message: str
) -> None:
    found = run_json("compare", yaml, "--targets", targets, cwd=folder, code=2)
    (error,) = items_of(found["errors"])
    assert message in error["message"]
    assert error["where"] == "--targets"
    assert error["hint"]


@pytest.mark.usefixtures("built")
def test_check_as_json(yaml: Path, folder: Path) -> None:
    found = run_json("check", yaml, cwd=folder)
    assert keys_of(found) == ["ok", "errors", "plan"]
    assert (found["ok"], found["errors"]) == (True, [])
    plan = found["plan"]
    assert isinstance(plan, dict)
    assert (plan["name"], plan["target"], plan["dtype"]) == ("tiny", "tvm_llvm", "fp32")
    assert (plan["window"], plan["context"], plan["layers"]) == (32, 48, 2)
    assert [phase["phase"] for phase in plan["phases"]] == ["prefill", "decode"]


def test_check_lists_every_error(yaml: Path, folder: Path) -> None:
    wrong = ("--set", "backend.compile.features=[avx3]", "--set", "backend.compile.thread=2")
    found = run_json("check", yaml, *wrong, cwd=folder, code=2)
    assert (found["ok"], found["plan"]) == (False, None)
    messages = " ".join(error["message"] for error in items_of(found["errors"]))
    assert "avx3" in messages
    assert "'thread'" in messages
