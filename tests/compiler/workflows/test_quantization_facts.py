"""What a manifest says of a model's quantization."""

import pytest

from compiler.config.quantize_section import Quantize
from compiler.contracts.program import PHASES
from compiler.workflows.quantization_facts import quantization_facts

NEAREST = {"method": "nearest", "bits": 8, "group_size": 0}


@pytest.mark.parametrize(
    ("section", "weights", "prefill", "decode", "cache"),
    [
        ({"type": "w8a16"}, NEAREST, "float", "float", "float"),
        (
            {"type": "w8a16_gptq_kv8", "calib_args": {"bits": 4, "group_size": 32}},
            {"method": "gptq", "bits": 4, "group_size": 32},
            "float",
            "float",
            "int8",
        ),
        ({"type": "w8a8"}, NEAREST, "int8", "int8", "float"),
        (
            {"type": "w8a8kv8", "calib_args": {"decode_activations": "float"}},
            NEAREST,
            "int8",
            "float",
            "int8",
        ),
        ({"type": "w16kv8"}, {"method": "float"}, "float", "float", "int8"),
    ],
)
def test_each_phase(
    section: dict[str, object], weights: dict[str, object], prefill: str, decode: str, cache: str
):
    quantize = Quantize.model_validate(section)
    found = [quantization_facts(quantize, phase) for phase in PHASES]
    assert found == [
        {"weights": weights, "activations": activations, "cache": cache}
        for activations in (prefill, decode)
    ]
