"""How a phase of a model is rounded, as its manifest says it."""

from compiler.config.quantize_section import Quantize
from compiler.contracts.program import Phase


def quantization_facts(quantize: Quantize, phase: Phase) -> dict[str, object]:
    """Weights, activations and cache of a phase, as `frontend.quantize` asks for them."""
    kind, arguments = quantize.kind, quantize.calib_args
    weights: dict[str, object] = {"method": kind.weights}
    if kind.weights != "float":
        weights |= {"bits": arguments.bits, "group_size": arguments.group_size}
    is_rounded = phase == "prefill" or arguments.decode_activations == "int8"
    return {
        "weights": weights,
        "activations": "int8" if kind.has_int8_activations and is_rounded else "float",
        "cache": "int8" if kind.has_int8_cache else "float",
    }
