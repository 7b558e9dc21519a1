"""The fused operators as kernel calls: caches in place, everything else by value."""

import pytest
from relax_calls import kernel_calls, name_of
from rewritten_model import rewritten
from traced_models import CONTEXT, TracedModels

from compiler.contracts.program import Phase
from compiler.relax import relax_from_program
from targets.llvm.features import from_names
from targets.llvm.fused import fused_converters
from targets.llvm.kernel_calls import static_shape
from targets.llvm.row_kernels import RowKernels

FEATURES = from_names(["avx2", "fma"])


def test_the_operators_that_it_takes():
    assert sorted(fused_converters(RowKernels(FEATURES))) == [
        "CacheUpdate",
        "FusedAttention",
        "FusedRMSNorm",
        "FusedRotary",
        "FusedSiluMul",
        "QuantizedCacheUpdate",
        "QuantizedTokens",
        "WidenedCache",
    ]


@pytest.mark.parametrize(("phase", "tokens"), [("prefill", 16), ("decode", 1)])
def test_every_fused_operator_is_a_kernel_call(
    traced_models: TracedModels, phase: Phase, tokens: int
):
    program, _ = rewritten(traced_models, phase, past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(RowKernels(FEATURES)))
    called = kernel_calls(module)
    assert sorted(call.kind for call in called) == [
        "attention",
        "rms_norm",
        "rms_norm",
        "rms_norm",
        "silu_mul",
    ]
    (attention,) = [call for call in called if call.kind == "attention"]
    assert attention.shape == (tokens, 7, 8)
    updates = kernel_calls(module, "call_tir_inplace")
    assert [call.kind for call in updates] == ["cache_update"] * 2
    parameters = {parameter.name: parameter for parameter in module["main"].params}
    for call in updates:
        cache, rows, past, valid = call.arguments
        assert name_of(cache).startswith("past_key_values.0.")
        assert cache.same_as(parameters[name_of(cache)])
        assert static_shape(rows) == (tokens, 1, 8)
        assert call.shape == (CONTEXT, 1, 8)
        assert (name_of(past), name_of(valid)) == ("past_length", "valid_length")
    assert module.script().count("inplace_indices=[0]") == 2
    kept = module.script()
    assert "nn.softmax" not in kept
    assert "R.sigmoid" not in kept


def test_equal_calls_share_a_kernel(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(RowKernels(FEATURES)))
    functions = [name.name_hint for name in module.get_global_vars() if name.name_hint != "main"]
    # Three norms are one kernel, and so are the two cache updates.
    assert sorted(functions) == ["attention", "cache_update", "rms_norm", "silu_mul"]


def test_kernels_are_left_whole_by_fusion(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(RowKernels(FEATURES)))
    opaque = 8
    for name in module.get_global_vars():
        if name.name_hint != "main":
            assert int(module[name].attrs["op_pattern"]) == opaque
