"""The whole lowering of a tiny model: onnxruntime's numbers, caches updated in place."""

import os

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

from typing import Literal

import numpy as np
import pytest
import tvm
from program_runs import run_program
from relax_runs import arguments, run_main
from rewritten_model import LAYERS, NAME, rewritten
from traced_models import CONTEXT, WINDOW, TracedModels

from compiler.contracts.program import Phase
from compiler.relax import relax_from_program
from targets.llvm.features import detect, llvm_target
from targets.llvm.fused import fused_converters
from targets.llvm.pipeline import pipeline
from targets.llvm.row_kernels import RowKernels

CASES: tuple[tuple[Phase, str, tuple[tuple[int, int], ...]], ...] = (
    ("prefill", "float32", ((0, WINDOW), (5, 3), (CONTEXT - WINDOW, WINDOW), (CONTEXT - 1, 1))),
    ("decode", "float32", ((0, 1), (CONTEXT - 1, 1))),
    ("decode", "bfloat16", ((7, 1),)),
)


@pytest.mark.parametrize(("phase", "dtype", "lengths"), CASES)
def test_a_tiny_model_equals_onnxruntime(
    traced_models: TracedModels,
    phase: Phase,
    dtype: Literal["float32", "bfloat16"],
    lengths: tuple[tuple[int, int], ...],
):
    features = detect()
    program, _ = rewritten(traced_models, phase, past=0, valid=1, dtype=dtype)
    executable = tvm.compile(
        relax_from_program(program, fused=fused_converters(RowKernels(features))),
        target=tvm.target.Target(llvm_target(features, threads=2)),
        relax_pipeline=pipeline(RowKernels(features), threads=2),
    )
    checkpoint = traced_models.checkpoint(NAME, layers=LAYERS)
    for past, valid in lengths:
        _, inputs = rewritten(traced_models, phase, past=past, valid=valid, dtype=dtype)
        wanted = run_program(program, inputs, checkpoint)
        found = run_main(executable, arguments(program, inputs, checkpoint))
        for array, spec in zip(found, program.outputs(), strict=True):
            np.testing.assert_allclose(
                array,
                wanted[spec.name],
                rtol=0,
                atol=1e-4,
                err_msg=f"{spec.name} at {past}, {valid}",
            )


def test_its_phases_are_named_and_in_order():
    lowering = pipeline(RowKernels(detect()), threads=2)
    assert lowering.info.name == "graphlower.llvm"
    steps = lowering.passes  # pyright: ignore[reportAttributeAccessIssue] - by reflection
    names = [step.info.name for step in steps]
    for earlier, later in (
        ("LowerLinears", "LegalizeOps"),
        ("LegalizeOps", "FuseOps"),
        ("FuseTIR", "ScheduleRest"),
        ("ScheduleRest", "CallTIRRewrite"),
        ("CallTIRRewrite", "StaticPlanBlockMemory"),
    ):
        assert names.index(earlier) < names.index(later)
