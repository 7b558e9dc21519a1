"""A fault of the device is named by compare: the module's tap, in its layer."""

from dataclasses import replace
from pathlib import Path

import pytest
from built_bundles import in_this_process
from vacc_bundles import TINY, VaccBundles, VaccModel

from compiler.contracts.comparison import Report
from compiler.contracts.progress import Progress
from compiler.workflows.bisect import bisect_passes
from compiler.workflows.compare import compare
from compiler.workflows.comparing.inputs import InputOptions
from compiler.workflows.comparing.request import CompareRequest
from compiler.workflows.comparing.targets import TargetChoice
from targets.vacc.drivers import VARIABLE

pytestmark = pytest.mark.slow

PROMPT = " ".join(f"t{7 * index % 50}" for index in range(21))
BUILT = VaccModel(replace(TINY, layers=3, name="three"))
# The fault, and the layer and tap that compare must name.
CASES = (
    ("saturate@model.layers.2.mlp.act", 2, "act"),
    ("saturate@lm_head", None, "logits"),
    # What has no tap shows in the first one behind it.
    ("missing@model.rotary_emb.cos", 0, "q_rot"),
    ("missing@model.layers.1.self_attn", 1, "attn"),
    ("missing@model.layers.2.post_attention_layernorm", 2, "norm2"),
    ("wrong-layout@model.layers.1.mlp.down_proj", 1, "down"),
    ("late-write@past_key_values.2.key", 2, "keys"),
    ("saturate@model.layers.1.mlp.down_proj", 1, "down"),
    ("missing@model.layers.0.self_attn.k_proj.rotary", 0, "k_rot"),
    ("wrong-layout@model.layers.1.self_attn.q_proj", 1, "q"),
    ("late-write@past_key_values.1.value", 1, "values"),
)


# The same of two ranks, whose shares of each tap are seen side by side.
RANKS = (
    ("swapped-ranks@model.layers.1.mlp.act", 1, "act"),
    ("swapped-ranks@model.layers.0.self_attn.v_proj", 0, "v"),
    ("missing@model.layers.1.self_attn.o_proj", 1, "o"),
)


def compared(vacc_bundles: VaccBundles, fault: str, *, ways: int) -> Report:
    """What `compare --targets torch,vacc --level tap` says of a device with a fault."""
    request = CompareRequest(
        (TargetChoice("torch"), TargetChoice("tvm_vacc")),
        InputOptions(prompts=(PROMPT,), tokens=3, has_random=False),
        level="tap",
    )
    built = replace(BUILT, model=replace(BUILT.model, ways=ways))
    config = vacc_bundles.config(vacc_bundles.folder / f"three-{ways}.yaml", built)
    with pytest.MonkeyPatch.context() as patch, in_this_process():
        patch.setenv(VARIABLE, f"emulator:{fault}")
        return compare(config, request)


@pytest.mark.parametrize(
    ("ways", "fault", "layer", "point"),
    [
        (1, "", None, ""),
        *((1, *case) for case in CASES),
        (2, "", None, ""),
        *((2, *case) for case in RANKS),
    ],
)
def test_compare_names_each_fault_and_passes_without(
    vacc_bundles: VaccBundles, ways: int, fault: str, layer: int | None, point: str
) -> None:
    report = compared(vacc_bundles, fault, ways=ways)
    (comparison,) = report.comparisons
    assert len(comparison.taps) == 3 * 17 + 3
    if not fault:
        assert report.passed, comparison.findings
        return
    assert not report.passed
    found = comparison.findings[0]
    assert (found.kind, found.layer, found.point) == ("fault", layer, point), found.said


def test_no_pass_is_to_blame_for_a_fault_of_the_device(
    vacc_bundles: VaccBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "emulator:missing@model.layers.1.mlp.act")
    config = vacc_bundles.config(vacc_bundles.folder / "three-1.yaml", BUILT)
    with in_this_process():
        found = bisect_passes(config, folder=tmp_path / "shown", progress=Progress())
    assert found.ok
    assert "fuse-attention" in found.passes
    assert not (tmp_path / "shown").exists()
