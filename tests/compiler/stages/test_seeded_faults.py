"""A fault in a copy of each pass: the driver names the pass and the layer, and so does bisect."""

from dataclasses import dataclass
from math import log2

import onnx_graphsurgeon as gs
import pytest
from faulty_passes import FAULTS, LAYER, LAYERS, drop_bias, faulty, node, swap_bias
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import CheckFailed, PassError
from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program, tidy
from compiler.contracts.provenance import layer_of
from compiler.expectations import read_expectation
from compiler.numerics.probe import ProbeModel
from compiler.pass_order import PlannedPass
from compiler.stages.bisect import bisect
from compiler.stages.rewrite import Rewritten, rewrite
from passes.cast_dtype import CastDtype
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_silu_mul import FuseSiluMul


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


def test_a_layer_that_a_pass_misses_fails_its_count(traced_models: TracedModels):
    programs = traced_models.programs("mha", layers=LAYERS)
    for program in programs:
        sigmoid = node(program, f"model.layers.{LAYER}.mlp/Sigmoid")
        turned = gs.Variable("turned")
        turn = gs.Node("Neg", "turned", inputs=[sigmoid.inputs[0]], outputs=[turned])
        program.graph.nodes.append(turn)
        sigmoid.inputs[0] = turned
        tidy(program.graph)
    counted = PlannedPass(FuseSiluMul(), "model.yaml:9:5", expected=read_expectation("layers"))
    with pytest.raises(CheckFailed) as caught:
        rewrite(programs, [counted])
    error = caught.value
    assert (error.code, error.where) == ("pass-expectation", "model.yaml:9:5")
    assert error.message == (
        f"pass 'fuse-silu-mul' on prefill: rewrote {LAYERS - 1} places, expected {LAYERS} "
        f"(`layers`); layer {LAYER} has 0 of 1 (model.layers.{LAYER}.mlp/Sigmoid: it does not "
        "multiply its own input)"
    )


def test_the_model_itself_can_be_what_is_measured(traced_models: TracedModels):
    name, (rewriting, edit, _) = "fuse-rms-norm", FAULTS["fuse-rms-norm"]
    checkpoint = traced_models.checkpoint("mha", layers=LAYERS)

    def run(passes: list[PlannedPass]) -> Rewritten:
        programs = traced_models.programs("mha", layers=LAYERS)
        return rewrite(programs, passes, probe=ProbeModel(programs, checkpoint.rows, VOCABULARY))

    done = run(planned())
    assert all(record.error is not None and record.error < 1e-5 for record in done.records)
    assert {record.float64_error for record in done.records} == {None}
    with pytest.raises(CheckFailed, match=f"it begins in layer {LAYER}, at model.layers.{LAYER}."):
        run(planned(name, faulty(rewriting, edit)))


@dataclass(frozen=True)
class _BySize(FuseSiluMul):
    """Fuses where the model is wide enough: on the probe it never is."""

    def run(self, program: Program) -> PassReport:
        hidden = program.weights["model.norm.weight"].shape[0]
        return super().run(program) if hidden >= 64 else PassReport()


def test_a_pass_that_decides_by_sizes_is_refused(traced_models: TracedModels):
    programs = traced_models.programs("mha", layers=LAYERS)
    probe = traced_models.probe("mha", layers=LAYERS)
    with pytest.raises(PassError) as caught:
        rewrite(programs, [PlannedPass(_BySize(), "model.yaml:9:5")], probe=probe)
    assert caught.value.code == "probe-differs"
    assert caught.value.message == (
        "pass 'fuse-silu-mul' on prefill: rewrites model.layers.0.mlp/FusedSiluMul in the model "
        "alone, so that the probe's numbers say nothing of it"
    )


def with_cast(seeded: Pass) -> list[PlannedPass]:
    """The pipeline in 16 bits, without what would notice a misplaced bias by its name."""
    listed = [one for one in planned() if one.rewrite.name != "keep-qkv-bias"]
    return [*listed[:-1], PlannedPass(seeded, "yaml: cast-dtype"), listed[-1]]


def test_a_fault_is_seen_under_a_promise_that_is_wider_than_it(traced_models: TracedModels):
    lossy = faulty(CastDtype("bfloat16"), swap_bias)
    programs = traced_models.programs("mha", layers=LAYERS)
    with pytest.raises(CheckFailed) as caught:
        rewrite(programs, with_cast(lossy), probe=traced_models.probe("mha", layers=LAYERS))
    message = caught.value.message
    assert message.startswith("pass 'cast-dtype' on prefill: promises rounds(atol=0.5), but in ")
    assert f"it begins in layer {LAYER}, at model.layers.{LAYER}.self_attn" in message
    found = bisect(traced_models.probe("mha", layers=LAYERS), with_cast(lossy))
    assert found.culprit is not None
    assert found.culprit.planned.rewrite.name == "cast-dtype"
    sound = with_cast(CastDtype("bfloat16"))
    assert bisect(traced_models.probe("mha", layers=LAYERS), sound).culprit is None


def test_bisect_of_sound_passes_finds_nothing(traced_models: TracedModels):
    found = bisect(traced_models.probe("mha", layers=LAYERS), planned())
    assert found.culprit is None
    assert len(found.runs) <= log2(len(FAULTS)) + 1
