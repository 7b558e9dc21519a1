"""The target as the compiler sees it: what it refuses, adds, writes and opens."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from rewritten_model import rewritten
from traced_models import TracedModels

from compiler import registry
from compiler.contracts.bundle import Bundle, Manifest, ModuleEntry
from compiler.contracts.errors import ConfigError, MachineLacks, TargetError
from compiler.contracts.pass_base import Skip
from compiler.contracts.target_base import PassChoice, TargetOptions
from compiler.stages.lower import lower_program
from targets.llvm import target as module
from targets.llvm.features import CpuFeatures, detect
from targets.llvm.target import LIBRARY, LLVMTarget

OPTIONS = TargetOptions(
    dtype="fp32",
    window=16,
    context=40,
    compile={"features": ["avx2", "fma", "f16c"], "threads": 2},
    places={
        "backend.compile.threads": "model.yaml:9:5",
        "backend.compile.features": "model.yaml:8:5",
        "backend.compile.threds": "model.yaml:9:5",
        "frontend.model_kwargs.tp": "model.yaml:4:9",
    },
)


def refusals(**keys: object) -> list[tuple[str, str | None]]:
    options = replace(OPTIONS, compile={**OPTIONS.compile, **keys})
    found = LLVMTarget().constraints(options, {})
    assert all(isinstance(error, ConfigError) for error in found)
    return [(error.message, error.where) for error in found]


# -- options


def test_good_options():
    assert refusals() == []
    assert LLVMTarget().constraints(replace(OPTIONS, compile={}), {}) == []
    # Options of the accelerator, which existing files carry.
    assert refusals(data_type=0, gather_data_vccl_dsp_enable=True) == []


def test_bad_options_all_at_once():
    assert refusals(threads=0, features=["avx9"], threds=4) == [
        ("unknown CPU feature 'avx9'", "model.yaml:8:5"),
        ("threads is 0, expected a positive integer", "model.yaml:9:5"),
        ("target 'tvm_llvm' has no compile option 'threds'", "model.yaml:9:5"),
    ]


@pytest.mark.parametrize("threads", [0, -1, True, "4", 1.5])
def test_threads_that_are_no_number(threads: object):
    assert refusals(threads=threads) == [
        (f"threads is {threads!r}, expected a positive integer", "model.yaml:9:5")
    ]


@pytest.mark.parametrize("features", ["avx2", 3])
def test_features_that_are_no_list(features: object):
    assert refusals(features=features) == [
        (f"features is {features!r}, expected a list such as [avx2, fma]", "model.yaml:8:5")
    ]


def test_several_ranks_are_taken():
    assert LLVMTarget.has_ranks
    assert LLVMTarget().constraints(replace(OPTIONS, tensor_parallel=4), {}) == []


def test_the_fingerprint_is_what_decides_the_code():
    assert LLVMTarget().fingerprint(OPTIONS) == {
        "arch": "x86_64",
        "features": ["avx2", "f16c", "fma"],
        "threads": 2,
    }
    found = LLVMTarget().fingerprint(replace(OPTIONS, compile={}))
    assert found["features"] == list(detect().flags)


@pytest.mark.parametrize(
    ("dtype", "compute", "stored"),
    [
        ("fp32", "", "float32"),
        ("bf16", "", "bfloat16"),
        ("fp16", "", "float16"),
        ("int8", "", "bfloat16"),
        ("int8", "fp32", "float32"),
        ("int8", "fp16", "float16"),
        # Elsewhere the dtype says all.
        ("bf16", "fp32", "bfloat16"),
    ],
)
def test_its_passes_are_registered_and_store_the_dtype(dtype: str, compute: str, stored: str):
    choices = LLVMTarget().passes(replace(OPTIONS, dtype=dtype, compute_dtype=compute))
    assert PassChoice("store-weights", {"dtype": stored}) in choices
    assert {choice.name for choice in choices} <= set(registry.passes())


# -- what the machine has


def test_a_machine_without_tvm_or_linker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(module, "find_linker", lambda: None)
    probe = LLVMTarget().probe()
    assert (probe.can_build, probe.can_run) == (False, False)
    assert probe.missing == (
        "apache-tvm is not installed: pip install graphlower",
        "there is no C compiler: install gcc, or pip install ziglang",
    )


def test_running_needs_no_linker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_linker", lambda: None)
    probe = LLVMTarget().probe()
    assert (probe.can_build, probe.can_run) == (False, True)


# -- lowering


def test_symbolic_shapes_are_refused(traced_models: TracedModels, tmp_path: Path):
    program = traced_models.programs("gqa", layers=1).programs["decode"]
    found = LLVMTarget().unsupported(program)
    assert found[0] == Skip(
        "attention_mask", "its shape (1, 'past + 1') is symbolic; 'plan-kv-cache' makes it static"
    )
    assert [skip.node for skip in found] == [
        "attention_mask",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    with pytest.raises(Exception, match="cannot lower it: its shape") as several:
        lower_program(LLVMTarget, program, OPTIONS, tmp_path / "out")
    assert len(getattr(several.value, "errors", ())) == 3
    assert not (tmp_path / "out").exists()


def test_equal_programs_give_equal_bytes(traced_models: TracedModels, tmp_path: Path):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    written = []
    for name in ("one", "two"):
        lowered = lower_program(LLVMTarget, program, OPTIONS, tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [LIBRARY]
        written.append((tmp_path / name / LIBRARY).read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
    assert lowered.params == tuple(sorted(program.weights))
    assert lowered.facts == {**LLVMTarget().fingerprint(OPTIONS), "library": "module.so"}


# -- opening


def test_only_bundles_are_opened(traced_models: TracedModels):
    with pytest.raises(TargetError) as caught:
        LLVMTarget().open(traced_models.checkpoint("gqa"))
    assert caught.value.message == "target 'tvm_llvm' opens bundles, not CheckpointRef"


def test_a_bundle_for_another_cpu_names_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from targets.llvm import runner

    monkeypatch.setattr(runner, "detect", lambda: CpuFeatures("x86_64", ("avx2",)))
    entry = ModuleEntry(
        phase="decode",
        rank=0,
        folder="decode_40_rank0",
        tokens=1,
        inputs=(),
        outputs=(),
        params=(),
        stored={},
        aliases={},
        logits_of="last_valid",
        target={"arch": "x86_64", "features": ["avx2", "avx512f", "fma"]},
    )
    manifest = Manifest(
        name="tiny",
        digest="d",
        target="tvm_llvm",
        config={},
        checkpoint={},
        window=16,
        context=40,
        vocabulary=8,
        modules=(entry,),
        passes=(),
        tools={},
        files={},
        sizes={},
    )
    with pytest.raises(MachineLacks) as caught:
        LLVMTarget().open(Bundle(tmp_path, manifest))
    assert caught.value.message == (
        "the bundle was built for a CPU with avx512f, fma, which this one lacks"
    )
    assert caught.value.where == str(tmp_path)
    assert caught.value.hint == "build it here, or with backend.compile.features"
