"""A fault of the device is named by compare: the module's tap, in its layer."""

from pathlib import Path

import pytest
from built_bundles import in_this_process
from vacc_bundles import VaccBundles

from compiler.workflows.compare import compare
from compiler.workflows.comparing.inputs import InputOptions
from compiler.workflows.comparing.request import CompareRequest
from compiler.workflows.comparing.targets import TargetChoice
from targets.vacc.driver import VARIABLE

pytestmark = pytest.mark.slow

PROMPT = " ".join(f"t{7 * index % 50}" for index in range(21))
# The fault, and the layer and tap that compare must name.
CASES = (
    ("saturate@model.layers.1.mlp.down_proj", 1, "down"),
    ("missing@model.layers.0.self_attn.k_proj.rotary", 0, "k_rot"),
    ("wrong-layout@model.layers.1.self_attn.q_proj", 1, "q"),
    ("late-write@past_key_values.1.value", 1, "values"),
)


@pytest.mark.parametrize(("fault", "layer", "point"), [("", None, ""), *CASES])
def test_compare_names_each_fault_and_passes_without(
    vacc_bundles: VaccBundles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    layer: int | None,
    point: str,
) -> None:
    monkeypatch.setenv(VARIABLE, f"emulator:{fault}")
    request = CompareRequest(
        (TargetChoice("torch"), TargetChoice("tvm_vacc")),
        InputOptions(prompts=(PROMPT,), tokens=3, has_random=False),
        level="tap",
    )
    config = vacc_bundles.config(vacc_bundles.folder / "model.yaml")
    with in_this_process():
        report = compare(config, request)
    (comparison,) = report.comparisons
    assert len(comparison.taps) > 30
    if not fault:
        assert report.passed, comparison.findings
        return
    assert not report.passed
    found = comparison.findings[0]
    assert (found.kind, found.layer, found.point) == ("fault", layer, point), found.said
