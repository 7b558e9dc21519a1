"""Linears with int8 weights, through the importer and the whole lowering: onnxruntime's numbers."""

import os

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import numpy as np
import pytest
import tvm
from program_runs import run_program
from relax_calls import kernel_calls, operators
from relax_runs import arguments, run_main
from rewritten_model import LAYERS, NAME, rewritten
from traced_models import WINDOW, TracedModels
from tvm import relax

from compiler.contracts.program import Phase, Program
from compiler.relax import relax_from_program
from passes.annotate_int8_qdq import AnnotateInt8QDQ, Operator
from targets.llvm.features import detect, llvm_target
from targets.llvm.fused import fused_converters
from targets.llvm.kernel_calls import dtype_of
from targets.llvm.linears import lower_linears
from targets.llvm.pipeline import pipeline
from targets.llvm.row_kernels import RowKernels

pytestmark = pytest.mark.slow

CASES: tuple[tuple[Phase, Operator, tuple[tuple[int, int], ...]], ...] = (
    ("prefill", "qdq", ((0, WINDOW), (5, 3))),
    ("decode", "qdq", ((7, 1),)),
    ("decode", "vastai", ((7, 1),)),
)


def quantized(
    traced_models: TracedModels, phase: Phase, operator: Operator, *, past: int, valid: int
) -> tuple[Program, dict[str, np.ndarray]]:
    """As a build does it: the YAML's pass, then the target's."""
    return rewritten(
        traced_models,
        phase,
        past=past,
        valid=valid,
        dtype="bfloat16",
        added=(AnnotateInt8QDQ(operator=operator),),
    )


@pytest.mark.parametrize(("phase", "operator", "lengths"), CASES)
def test_a_tiny_model_equals_onnxruntime(
    traced_models: TracedModels,
    phase: Phase,
    operator: Operator,
    lengths: tuple[tuple[int, int], ...],
):
    features = detect()
    program, _ = quantized(traced_models, phase, operator, past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(RowKernels(features)))
    executable = tvm.compile(
        module,
        target=tvm.target.Target(llvm_target(features, threads=2)),
        relax_pipeline=pipeline(RowKernels(features), threads=2),
    )
    checkpoint = traced_models.checkpoint(NAME, layers=LAYERS)
    assert module.script().count("R.dequantize(") == 7
    taken = relax.transform.DeadCodeElimination()(lower_linears(module, RowKernels(features)))
    linears = [call for call in kernel_calls(taken) if call.kind == "linear"]
    read = [dtype_of(call.arguments[1]) for call in linears]
    assert sorted(read) == ["bfloat16", *["int8"] * 7]
    assert not {"matmul", "dequantize"} & operators(taken)
    for past, valid in lengths:
        _, inputs = quantized(traced_models, phase, operator, past=past, valid=valid)
        wanted = run_program(program, inputs, checkpoint)
        given = arguments(program, inputs, checkpoint)
        assert sum(array.dtype == np.int8 for array in given) == 7
        found = run_main(executable, given)
        for array, spec in zip(found, program.outputs(), strict=True):
            np.testing.assert_allclose(
                array,
                wanted[spec.name],
                rtol=0,
                atol=1e-4,
                err_msg=f"{spec.name} at {past}, {valid}",
            )
