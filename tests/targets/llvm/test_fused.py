"""The fused operators as kernel calls: caches in place, everything else by value."""

import pytest
import tvm
from rewritten_model import rewritten
from traced_models import CONTEXT, TracedModels
from tvm import relax

from compiler.contracts.program import Phase
from compiler.relax import relax_from_program
from targets.llvm.features import from_names
from targets.llvm.fused import fused_converters

FEATURES = from_names(["avx2", "fma"])


def calls(module: tvm.IRModule, operator: str) -> list[relax.Call]:
    found: list[relax.Call] = []

    def visit(node: object) -> None:
        if isinstance(node, relax.Call) and node.op == tvm.ir.Op.get(f"relax.{operator}"):
            found.append(node)

    relax.analysis.post_order_visit(module["main"], visit)
    return found


def test_the_operators_that_it_takes():
    assert sorted(fused_converters(FEATURES)) == [
        "CacheUpdate", "FusedAttention", "FusedRMSNorm", "FusedSiluMul",
    ]


@pytest.mark.parametrize(("phase", "tokens"), [("prefill", 16), ("decode", 1)])
def test_every_fused_operator_is_a_kernel_call(
    traced_models: TracedModels, phase: Phase, tokens: int
):
    program, _ = rewritten(traced_models, phase, past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(FEATURES))
    names = [call.args[0].name_hint.rstrip("0123456789") for call in calls(module, "call_tir")]
    assert sorted(names) == ["attention", "rms_norm", "rms_norm", "rms_norm", "silu_mul"]
    updates = calls(module, "call_tir_inplace")
    assert [call.args[0].name_hint.rstrip("0123456789") for call in updates] == ["cache_update"] * 2
    parameters = {parameter.name: parameter for parameter in module["main"].params}
    for call in updates:
        cache, rows, past, valid = call.args[1].fields
        assert cache.name.startswith("past_key_values.0.")
        assert cache.same_as(parameters[cache.name])
        assert list(call.attrs.inplace_indices) == [0]
        assert [int(axis) for axis in rows.ty.shape] == [tokens, 1, 8]
        assert [int(axis) for axis in call.ty.shape] == [CONTEXT, 1, 8]
        assert (past.name, valid.name) == ("past_length", "valid_length")
    (attention,) = [c for c in calls(module, "call_tir") if c.args[0].name_hint.startswith("attention")]
    assert [int(axis) for axis in attention.ty.shape] == [tokens, 7, 8]
    kept = module.script()
    assert "nn.softmax" not in kept
    assert "R.sigmoid" not in kept


def test_equal_calls_share_a_kernel(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(FEATURES))
    functions = [name.name_hint for name in module.get_global_vars() if name.name_hint != "main"]
    # Three norms are one kernel, and so are the two cache updates.
    assert sorted(functions) == ["attention", "cache_update", "rms_norm", "silu_mul"]


def test_kernels_are_left_whole_by_fusion(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    module = relax_from_program(program, fused=fused_converters(FEATURES))
    opaque = 8
    for name in module.get_global_vars():
        if name.name_hint != "main":
            assert int(module[name].attrs["op_pattern"]) == opaque
