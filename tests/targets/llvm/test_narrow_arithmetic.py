"""A graph that computes in 16 bits, through the importer and the whole lowering."""

import os

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import numpy as np
import pytest
import tvm
from program_runs import run_pass
from relax_runs import arguments, run_main
from rewritten_model import LAYERS, NAME, rewritten
from traced_models import TracedModels

from compiler.contracts.weight_values import value
from compiler.numerics.reference_run import run_model
from compiler.relax import relax_from_program
from passes.cast_dtype import CastDtype, Dtype
from passes.store_weights import StoreWeights
from targets.llvm.features import detect, llvm_target
from targets.llvm.fused import fused_converters
from targets.llvm.pipeline import pipeline
from targets.llvm.row_kernels import RowKernels

pytestmark = pytest.mark.slow


# A product accumulates in the type that it computes in, where the reference does in float32.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2.0**-6), ("bfloat16", 2.0**-4)])
def test_a_tiny_model_equals_the_reference(
    traced_models: TracedModels, dtype: Dtype, tolerance: float
):
    program, inputs = rewritten(traced_models, "decode", past=7, valid=1, has_storage=False)
    run_pass(CastDtype(dtype), program)
    run_pass(StoreWeights(), program)
    features = detect()
    executable = tvm.compile(
        relax_from_program(program, fused=fused_converters(RowKernels(features))),
        target=tvm.target.Target(llvm_target(features, threads=2)),
        relax_pipeline=pipeline(RowKernels(features), threads=2),
    )
    checkpoint = traced_models.checkpoint(NAME, layers=LAYERS)
    given = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    wanted = run_model(program.model(), {**inputs, **given})
    found = run_main(executable, arguments(program, inputs, checkpoint))
    for array, spec in zip(found, program.outputs(), strict=True):
        assert array.dtype == np.float32
        assert np.abs(array - wanted[spec.name]).max() < tolerance, spec.name
