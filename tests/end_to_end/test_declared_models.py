"""The accelerator's YAMLs on a small random Qwen2: torch's numbers and tokens."""

from pathlib import Path

import pytest
from built_bundles import TinyModel, in_this_process, write_tiny
from compiler_process import ROOT

from compiler.config import load_config
from compiler.workflows.compare import compare
from compiler.workflows.comparing.inputs import InputOptions
from compiler.workflows.comparing.request import CompareRequest
from compiler.workflows.comparing.targets import TargetChoice

pytestmark = pytest.mark.slow

MODEL = TinyModel(
    name="small", hidden=256, layers=1, heads=16, kv_heads=8, intermediate=128, vocabulary=1000
)
# GPTQ reads every window of text in float32, and what it does grows with neither length.
SHORT = ("frontend.shape.input_ids=[[64],[96]]", "dataset.seqlen=64")
TARGETS = (TargetChoice("torch"), TargetChoice("tvm_vacc"))
TOKENS = 4


@pytest.mark.parametrize(
    ("dtype", "shorter"), [("fp16", ()), ("int8", SHORT)], ids=["fp16 as it stands", "int8"]
)
def test_a_declared_model_says_what_torch_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, shorter: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    checkpoint = write_tiny(tmp_path / "checkpoint", MODEL)
    config = load_config(
        ROOT / "models" / f"qwen1.5-{dtype}.yaml",
        overrides=[f"frontend.checkpoint={checkpoint}", f"workspace.path={tmp_path}", *shorter],
    )
    assert config.frontend.model_kwargs.tp == 4
    with in_this_process():
        (found,) = compare(config, CompareRequest(TARGETS, InputOptions((), TOKENS))).comparisons
    # One token, part of a window, a whole one, and more than one.
    assert len(found.steps) == 4 * TOKENS
    assert found.passed
