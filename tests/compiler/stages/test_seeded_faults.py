"""A fault in a copy of each pass: the driver names the pass and the layer, and so does bisect."""

from math import log2

import pytest
from faulty_passes import FAULTS, LAYER, LAYERS, drop_bias, faulty
from traced_models import TracedModels

from compiler.contracts.errors import CheckFailed, PassError
from compiler.contracts.pass_base import Pass
from compiler.contracts.provenance import layer_of
from compiler.pass_order import PlannedPass
from compiler.stages.bisect import bisect
from compiler.stages.rewrite import rewrite
from passes.fuse_rms_norm import FuseRMSNorm


def planned(name: str = "", seeded: Pass | None = None) -> list[PlannedPass]:
    """Every pass in order, one of them replaced."""
    return [
        PlannedPass(seeded if seeded is not None and one == name else rewriting, f"yaml: {one}")
        for one, (rewriting, _, _) in FAULTS.items()
    ]


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "keep-qkv-bias"])
def test_the_build_names_the_pass_and_the_layer(traced_models: TracedModels, name: str):
    rewriting, edit, layer = FAULTS[name]
    programs = traced_models.programs("mha", layers=LAYERS)
    probe = traced_models.probe("mha", layers=LAYERS)
    with pytest.raises(CheckFailed) as caught:
        rewrite(programs, planned(name, faulty(rewriting, edit)), probe=probe)
    error = caught.value
    assert (error.code, error.where) == ("pass-contract", f"yaml: {name}")
    assert error.message.startswith(f"pass '{name}' on ")
    assert f"promises {rewriting.promise()}, but " in error.message
    place = "outside the layers" if layer is None else f"in layer {layer},"
    assert f"it begins {place}" in error.message


@pytest.mark.parametrize("rewriting", [FuseRMSNorm(), FAULTS["fold-mask"][0]], ids=lambda p: p.name)
def test_a_dropped_bias_breaks_the_invariant(traced_models: TracedModels, rewriting: Pass):
    programs = traced_models.programs("mha", layers=LAYERS)
    with pytest.raises(PassError) as caught:
        rewrite(programs, planned(rewriting.name, faulty(rewriting, drop_bias)))
    assert caught.value.message == (
        f"pass '{rewriting.name}' on prefill: broke 'keep-qkv-bias': model.layers.{LAYER}."
        "self_attn.v_proj.bias reaches 0 Adds in the prefill graph, expected one"
    )


@pytest.mark.parametrize("name", list(FAULTS))
def test_bisect_finds_the_pass_and_the_layer(traced_models: TracedModels, name: str):
    rewriting, edit, layer = FAULTS[name]
    probe = traced_models.probe("mha", layers=LAYERS)
    found = bisect(probe, planned(name, faulty(rewriting, edit)))
    assert found.culprit is not None
    assert found.culprit.planned.rewrite.name == name
    assert found.culprit.divergence is not None
    assert layer_of(found.culprit.divergence.tensor) == layer
    assert len(found.runs) <= log2(len(FAULTS)) + 1


def test_bisect_of_sound_passes_finds_nothing(traced_models: TracedModels):
    found = bisect(traced_models.probe("mha", layers=LAYERS), planned())
    assert found.culprit is None
    assert len(found.runs) <= log2(len(FAULTS)) + 1
