"""`onnxruntime` as a target: what it opens, and what it says of itself."""

import importlib.util

import pytest
from traced_models import TracedModels

from compiler import registry
from compiler.contracts.errors import TargetError
from compiler.contracts.program import ProgramSet
from compiler.contracts.target_base import ProgramModel, TargetOptions
from targets.onnxruntime.target import OnnxRuntimeTarget

TARGET = OnnxRuntimeTarget()


def test_it_is_registered():
    assert registry.load_target("onnxruntime") is OnnxRuntimeTarget
    assert (TARGET.opens, TARGET.variants) == ("program", ())


def test_the_probe_asks_for_onnxruntime(monkeypatch: pytest.MonkeyPatch):
    probe = TARGET.probe()
    assert (probe.can_build, probe.can_run, probe.missing) == (False, True, ())

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    probe = TARGET.probe()
    assert not probe.can_run
    assert probe.missing == ("onnxruntime is not installed: pip install onnxruntime",)


def test_it_builds_no_bundle():
    (error,) = TARGET.constraints(TargetOptions("fp32", 16, 40), {})
    assert error.message == "target 'onnxruntime' runs models, it does not build bundles"


def test_it_opens_programs_alone(traced_models: TracedModels):
    checkpoint = traced_models.checkpoint("mha")
    with pytest.raises(TargetError) as caught:
        TARGET.open(checkpoint)
    assert caught.value.message == "target 'onnxruntime' opens programs, not CheckpointRef"

    programs = ProgramSet({"prefill": traced_models.programs("mha").programs["prefill"]})
    runner = TARGET.open(ProgramModel(programs, checkpoint), threads=2, variant="fold-mask")
    assert runner.layers == 2
