"""Fused operators: names that nobody else has, and functions that ONNX accepts."""

import onnx
import onnx.defs
import pytest
from onnx import FunctionProto

from compiler.contracts.program import FUSED_DOMAIN, OPSET
from compiler.numerics.quiet_runtime import import_onnxruntime
from passes._int8_forms import QUANTIZED_LINEAR, QUANTIZED_TOKENS, VASTAI_DOMAIN
from passes.fold_mask import CAUSAL_MASK
from passes.fuse_attention import FUSED_ATTENTION
from passes.fuse_rms_norm import FUSED_RMS_NORM
from passes.fuse_rotary import FUSED_ROTARY
from passes.fuse_silu_mul import FUSED_SILU_MUL
from passes.plan_kv_cache import CACHE_UPDATE
from passes.shard_tensor_parallel import ALL_GATHER_FUNCTION, ALL_REDUCE_FUNCTION

OURS = (
    CAUSAL_MASK,
    CACHE_UPDATE,
    FUSED_ATTENTION,
    FUSED_RMS_NORM,
    FUSED_ROTARY,
    FUSED_SILU_MUL,
    QUANTIZED_TOKENS,
    ALL_REDUCE_FUNCTION,
    ALL_GATHER_FUNCTION,
)
# The accelerator's operators stand in its own domain.
FUNCTIONS = (*OURS, QUANTIZED_LINEAR)


def _taken() -> set[str]:
    """ONNX's operators, and those that onnxruntime registers in any domain."""
    import_onnxruntime()
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    contributed = {schema.name: schema.domain for schema in get_all_operator_schema()}
    assert "com.microsoft" in contributed.values()
    return {schema.name for schema in onnx.defs.get_all_schemas()} | set(contributed)


def test_no_name_is_an_operator_s():
    taken = _taken()
    assert {"Attention", "RMSNormalization", "RotaryEmbedding", "GroupQueryAttention"} <= taken
    assert not taken & {function.name for function in FUNCTIONS}


def test_names_are_distinct():
    assert len({function.name for function in FUNCTIONS}) == len(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.name)
def test_functions_are_of_their_domain_and_standard_operators(function: FunctionProto):
    assert function.domain == (FUSED_DOMAIN if function in OURS else VASTAI_DOMAIN)
    assert {one.domain: one.version for one in function.opset_import}[""] == OPSET
    known = {schema.name for schema in onnx.defs.get_all_schemas()} | {"CausalMask"}
    assert {node.op_type for node in function.node} <= known
    assert all(not node.name for node in function.node)
