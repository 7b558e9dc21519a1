"""What `frontend.quantize.type` names: how weights, activations and the KV cache are stored.

w8a16                    int8 weights, rounded to nearest; activations stay floats
w8a16_gptq               int8 (or 4-bit) weights, chosen on calibration data by GPTQ
w8a8                     int8 weights, and activations rounded to int8 token by token as they come
w16kv8                   float weights, an int8 KV cache
w8a16kv8, w8a16_gptq_kv8, w8a8kv8      both
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

WeightMethod = Literal["float", "nearest", "gptq"]
QuantizeName = Literal[
    "w8a16", "w8a16_gptq", "w8a8", "w16kv8", "w8a16kv8", "w8a16_gptq_kv8", "w8a8kv8"
]

# The linears of a decoder layer, as globs over module paths.
SEVEN_LINEARS = (
    "*.self_attn.[qkvo]_proj",
    "*.mlp.gate_proj",
    "*.mlp.up_proj",
    "*.mlp.down_proj",
)


@dataclass(frozen=True)
class QuantizeType:
    """One type.

    Attributes:
        weights: How the included linears' weights become integers; `float`: they do not.
        has_int8_activations: Whether what such a linear takes is rounded to int8, each token by its
            own scale.
        has_int8_cache: Whether keys and values are kept in int8, each head of a token by its own
            scale.
    """

    weights: WeightMethod
    has_int8_activations: bool = False
    has_int8_cache: bool = False


QUANTIZE_TYPES: Mapping[QuantizeName, QuantizeType] = {
    "w8a16": QuantizeType("nearest"),
    "w8a16_gptq": QuantizeType("gptq"),
    "w8a8": QuantizeType("nearest", has_int8_activations=True),
    "w16kv8": QuantizeType("float", has_int8_cache=True),
    "w8a16kv8": QuantizeType("nearest", has_int8_cache=True),
    "w8a16_gptq_kv8": QuantizeType("gptq", has_int8_cache=True),
    "w8a8kv8": QuantizeType("nearest", has_int8_activations=True, has_int8_cache=True),
}


@dataclass(frozen=True)
class Quantization:
    """What `frontend.quantize` asks of a build, as a target sees it.

    Attributes:
        kind: What its type says.
        bits: Of a weight's code; 4 bits are stored in int8, too.
        group_size: Inputs that share a scale; 0: all of an output channel.
        include: Globs of modules whose weights are codes besides the seven linears of a layer.
        exclude: Globs of modules that stay floats.
    """

    kind: QuantizeType
    bits: int = 8
    group_size: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def has_codes(self, module: str) -> bool:
        """Whether a module's weight (`model.layers.0.mlp.up_proj`) is stored in int8.

        A budget (`target_loss`) may keep more of them as floats.
        """
        if self.kind.weights == "float":
            return False
        is_in = any(fnmatchcase(module, glob) for glob in (*SEVEN_LINEARS, *self.include))
        return is_in and not any(fnmatchcase(module, glob) for glob in self.exclude)
