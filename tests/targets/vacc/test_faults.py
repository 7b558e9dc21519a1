"""A fault of the device is named by compare: the module's tap, in its layer."""

from dataclasses import replace

import pytest
from built_bundles import in_this_process
from vacc_bundles import TINY, VaccBundles, VaccModel

from compiler.contracts.comparison import Report
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
    built = VaccModel(replace(TINY, name=f"faults-{ways}", ways=ways))
    config = vacc_bundles.config(vacc_bundles.folder / f"faults-{ways}.yaml", built)
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
    assert len(comparison.taps) > 30
    if not fault:
        assert report.passed, comparison.findings
        return
    assert not report.passed
    found = comparison.findings[0]
    assert (found.kind, found.layer, found.point) == ("fault", layer, point), found.said
