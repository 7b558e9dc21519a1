"""KV caches of 16 bits and int8, through the importer and the whole lowering."""

import os
import re

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import numpy as np
import pytest
import tvm
from program_runs import run_pass, run_program
from relax_calls import calls_of, kernel_calls, name_of
from relax_runs import arguments, run_main
from rewritten_model import LAYERS, NAME, rewritten
from traced_models import CONTEXT, WINDOW, TracedModels
from tvm import relax
from tvm.ir import GlobalVar

from compiler.contracts.program import Phase, Program
from compiler.relax import relax_from_program
from compiler.relax.cache_writes import join_cache_writes
from passes.eliminate_dead import EliminateDead
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.plan_kv_cache import PlanKVCache
from passes.store_kv_cache import CacheDtype, StoreKVCache
from targets.llvm.features import detect, llvm_target
from targets.llvm.fused import fused_converters
from targets.llvm.kernel_calls import dtype_of, static_shape
from targets.llvm.pipeline import pipeline
from targets.llvm.row_kernels import RowKernels

FEATURES = detect()
DTYPES: tuple[CacheDtype, ...] = ("int8", "bfloat16", "float16")
# A context of which a float32 cache (64 KB a side) is larger than everything else in a decode.
LONG = 2048
LENGTHS = {
    "prefill": ((0, WINDOW), (5, 3), (CONTEXT - 1, 1)),
    "decode": ((0, 1), (CONTEXT - 1, 1)),
}


def narrow(
    traced_models: TracedModels, phase: Phase, dtype: CacheDtype, *, past: int, valid: int
) -> tuple[Program, dict[str, np.ndarray]]:
    last = (StoreKVCache(dtype), EliminateDead())
    return rewritten(traced_models, phase, past=past, valid=valid, last=last)


def imported(program: Program) -> tvm.IRModule:
    return relax_from_program(
        join_cache_writes(program), fused=fused_converters(RowKernels(FEATURES))
    )


def compiled(program: Program) -> tvm.runtime.Executable:
    return tvm.compile(
        imported(program),
        target=tvm.target.Target(llvm_target(FEATURES, threads=2)),
        relax_pipeline=pipeline(RowKernels(FEATURES), threads=2),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_tiny_model_equals_onnxruntime(
    traced_models: TracedModels, phase: Phase, dtype: CacheDtype
):
    """Floats to 1e-4; what is rounded from floats that are off by a bit may be off by a step.

    One code, or one unit in the last place of 16 bits, in less than a hundredth of the entries.
    """
    program, _ = narrow(traced_models, phase, dtype, past=0, valid=1)
    executable = compiled(program)
    checkpoint = traced_models.checkpoint(NAME, layers=LAYERS)
    for past, valid in LENGTHS[phase]:
        _, inputs = narrow(traced_models, phase, dtype, past=past, valid=valid)
        wanted = run_program(program, inputs, checkpoint)
        found = run_main(executable, arguments(program, inputs, checkpoint))
        for array, spec in zip(found, program.outputs(), strict=True):
            where, value = f"{spec.name} at {past}, {valid}", wanted[spec.name]
            if spec.dtype == "float32":
                np.testing.assert_allclose(array, value, rtol=1e-4, atol=1e-4, err_msg=where)
                continue
            array, value = array.astype(np.float32), value.astype(np.float32)
            step = {"int8": 1.0, "bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
            allowed = step * (np.ones_like(value) if dtype == "int8" else np.abs(value) + 2.0**-24)
            assert (np.abs(array - value) <= allowed).all(), where
            assert (array != value).mean() < 0.01, where


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_int8_caches_go_to_kernels_as_they_are(traced_models: TracedModels, phase: Phase):
    program, _ = narrow(traced_models, phase, "int8", past=0, valid=1)
    before = program.model().SerializeToString(deterministic=True)
    module = relax.transform.DeadCodeElimination()(imported(program))
    assert program.model().SerializeToString(deterministic=True) == before, "it works on a copy"
    (reading,) = [call for call in kernel_calls(module) if call.kind == "attention"]
    dtypes = [dtype_of(value) for value in reading.arguments]
    assert dtypes == ["float32", "int8", "int8", "float32", "float32", "int64", "int64"]
    for call in (*calls_of(module, "multiply"), *calls_of(module, "astype")):
        assert static_shape(call)[:1] != (CONTEXT,), "a widened cache"
    parameters = {parameter.name: parameter for parameter in module["main"].params}
    writes = calls_of(module, "call_tir_inplace")
    written: list[str] = []
    for write in writes:
        kernel, given = write.args[:2]
        assert isinstance(kernel, GlobalVar)
        assert isinstance(given, relax.Tuple)
        codes, scales, _, *lengths = given.fields
        assert kernel.name_hint == "quantized_cache_update"
        name = name_of(codes)
        written.append(name)
        assert codes.same_as(parameters[name])
        assert scales.same_as(parameters[f"{name}_scale"])
        assert [name_of(length) for length in lengths] == ["past_length", "valid_length"]
    assert sorted(written) == ["past_key_values.0.key", "past_key_values.0.value"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_as_large_as_a_float32_cache_is_made(
    traced_models: TracedModels, dtype: CacheDtype
):
    program = traced_models.programs(NAME, layers=LAYERS).programs["decode"]
    program.context = LONG
    for rewriting in (FoldConstants(), FoldMask(), PlanKVCache(), FuseAttention()):
        run_pass(rewriting, program)
    plain = largest_storage(program)
    run_pass(StoreKVCache(dtype), program)
    spec = next(spec for spec in program.inputs() if spec.name == "past_key_values.0.key")
    wide_cache = 4 * int(np.prod([int(axis) for axis in spec.shape]))
    assert largest_storage(program) <= plain < wide_cache / 4


def largest_storage(program: Program) -> int:
    """Bytes of the largest storage that `main` asks for, once all is lowered."""
    with tvm.target.Target(llvm_target(FEATURES, threads=2)):
        module = pipeline(RowKernels(FEATURES), threads=2)(imported(program))
    sizes = re.findall(r"alloc_storage\(R\.shape\(\[(\d+)\]\)", module.script())
    assert sizes
    return max(map(int, sizes))
