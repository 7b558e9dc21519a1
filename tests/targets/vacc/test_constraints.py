"""Every violation at once, from the options and config.json alone."""

from dataclasses import replace

import pytest

from compiler.contracts.quantization import QUANTIZE_TYPES, Quantization
from compiler.contracts.target_base import OptionValue, TargetOptions
from targets.vacc.constraints import Sizes, memory_bytes
from targets.vacc.target import VaccTarget

QWEN = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def said(
    config: dict[str, object] | None = None,
    *,
    dtype: str = "fp16",
    ranks: int = 1,
    is_aligned: bool = False,
    context: int = 2048,
    compute: str = "",
    quantize: Quantization | None = None,
    compiled: dict[str, OptionValue] | None = None,
) -> list[str]:
    options = TargetOptions(
        dtype=dtype,
        window=1024,
        context=context,
        tensor_parallel=ranks,
        align_qkv=is_aligned,
        compute_dtype=compute,
        quantize=quantize,
        compile=compiled or {},
    )
    return [
        error.message for error in VaccTarget().constraints(options, {**QWEN, **(config or {})})
    ]


def test_a_model_that_fits_breaks_nothing() -> None:
    assert said() == []
    assert said(dtype="int8", ranks=4) == []
    assert said(compiled={"data_type": 0, "gather_data_vccl_dsp_enable": True}) == []


def test_all_violations_come_together() -> None:
    found = said(
        {"hidden_size": 1000, "intermediate_size": 2820, "num_attention_heads": 10},
        dtype="bf16",
        ranks=3,
        context=2040,
        compiled={"turbo": True, "strict": "yes"},
    )
    assert found == [
        "target 'tvm_vacc' has no compile option 'turbo'",
        "strict is 'yes', expected true or false",
        "the device takes weights of fp16 and int8, not bf16",
        "hidden_size is 1000, the device asks for a multiple of 16",
        "intermediate_size is 2820, the device asks for a multiple of 16",
        "head_dim is 100, the device asks for a multiple of 16",
        "the context is 2040, the device asks for a multiple of 16",
    ]


@pytest.mark.parametrize(
    ("inner", "ranks", "message"),
    [
        (2816, 8, []),
        (
            2816,
            16,
            ["intermediate_size of each of 16 ranks is 176, the device asks for a multiple of 32"],
        ),
        # What ranks do not divide is refused for every target, by the build.
        (2848, 3, []),
    ],
)
def test_a_ranks_share_is_of_whole_tiles_too(inner: int, ranks: int, message: list[str]) -> None:
    config: dict[str, object] = {"intermediate_size": inner}
    found = said(config, ranks=ranks, compiled={"matrix_tile": 32})
    assert found == message


def test_memory_is_refused_with_both_figures() -> None:
    (found,) = said(compiled={"memory_bytes": 1_000_000_000})
    assert found == (
        "a die needs 1.16 GB (weights 0.93, cache 0.20, workspace 0.03), "
        "the profile gives it 1.00 GB"
    )
    assert said(compiled={"memory_bytes": 1_000_000_000}, ranks=2) == []


def test_memory_counts_weights_once_and_the_cache_of_the_context() -> None:
    sizes = Sizes.of(QWEN)
    assert sizes is not None
    options = TargetOptions(dtype="fp16", window=1024, context=2048)
    found = memory_bytes(options, sizes, 16)
    linears = 4 * 1024 * 1024 + 3 * 1024 * 2816
    vectors = (3 * 1024 + 2 * 1024) * 24 + 1024
    assert found["weights"] == 2 * (24 * linears + 151936 * 1024) + 4 * vectors
    assert found["cache"] == 2 * 24 * 2048 * 1024 * 2
    # The embedding is whole on each rank, and its share of the head stands beside it.
    shared = memory_bytes(replace(options, tensor_parallel=4), sizes, 16)
    tables = 151936 * 1024 + 151936 // 4 * 1024
    vectors = (3 * 256 + 2 * 1024) * 24 + 1024
    assert shared["weights"] == 2 * (24 * linears // 4 + tables) + 4 * vectors
    # Of 2 key heads on 4 ranks each rank has one.
    two = replace(sizes, kv_heads=2)
    aligned = replace(options, tensor_parallel=4, align_qkv=True)
    assert memory_bytes(aligned, two, 16)["cache"] == 2 * 24 * 2048 * 64 * 2


LINEARS = 4 * 1024 * 1024 + 3 * 1024 * 2816
OUTPUTS = 5 * 1024 + 2 * 2816
VECTORS = 4 * ((3 * 1024 + 2 * 1024) * 24 + 1024)
TABLE = 151936 * 1024


@pytest.mark.parametrize(
    ("quantize", "weights"),
    [
        (Quantization(QUANTIZE_TYPES["w8a16"]), 24 * (LINEARS + 4 * OUTPUTS) + 2 * TABLE),
        (
            Quantization(QUANTIZE_TYPES["w8a16_gptq"], bits=4, group_size=64),
            24 * (LINEARS + 4 * LINEARS // 64) + 2 * TABLE,
        ),
        (
            Quantization(QUANTIZE_TYPES["w8a16"], include=("lm_head",)),
            24 * (LINEARS + 4 * OUTPUTS) + TABLE + 4 * 151936,
        ),
        (
            Quantization(QUANTIZE_TYPES["w8a16"], exclude=("*.down_proj",)),
            24 * (LINEARS + 2816 * 1024 + 4 * (OUTPUTS - 1024)) + 2 * TABLE,
        ),
        (Quantization(QUANTIZE_TYPES["w16kv8"]), 2 * (24 * LINEARS + TABLE)),
    ],
)
def test_memory_counts_codes_and_their_scales(quantize: Quantization, weights: int) -> None:
    sizes = Sizes.of(QWEN)
    assert sizes is not None
    options = TargetOptions(dtype="int8", window=1024, context=2048, quantize=quantize)
    found = memory_bytes(options, sizes, 16)
    assert found["weights"] == weights + VECTORS
    has_codes = quantize.kind.has_int8_cache
    assert found["cache"] == 2 * 24 * 2048 * (1024 + 4 * 16 if has_codes else 2 * 1024)


def test_groups_are_whole_tiles() -> None:
    asked = Quantization(QUANTIZE_TYPES["w8a16"], group_size=24)
    assert said(dtype="int8", quantize=asked) == [
        "group_size is 24, the device asks for a multiple of 16"
    ]
    assert said(dtype="int8", quantize=Quantization(asked.kind, group_size=32)) == []


def test_int8_computes_in_fp16() -> None:
    (found,) = said(dtype="int8", compute="bf16")
    assert found == "the device computes int8 models in fp16, not bf16"


def test_a_bad_profile_and_a_bad_driver_are_constraints_too() -> None:
    assert said(compiled={"profile": "none"}) == ["there is no profile 'none'"]
    assert said(compiled={"driver": "none"}) == ["there is no vacc driver 'none'"]
