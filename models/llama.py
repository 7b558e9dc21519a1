"""Llama (`model_type: llama`): a Qwen2 without biases on q, k, v, unless attention_bias says so."""

from collections.abc import Mapping
from typing import ClassVar

from models.qwen2 import Qwen2


class Llama(Qwen2):
    """Same graph as Qwen2; the biases follow `attention_bias` and `mlp_bias`."""

    model_types: ClassVar = ("llama",)
    default_length: ClassVar = 2048
    has_windows: ClassVar = False

    def has_qkv_bias(self, config: Mapping[str, object]) -> bool:
        """`attention_bias`."""
        return bool(config.get("attention_bias", False))

    def has_output_bias(self, config: Mapping[str, object]) -> bool:
        """`attention_bias` covers o_proj, too."""
        return bool(config.get("attention_bias", False))

    def has_mlp_bias(self, config: Mapping[str, object]) -> bool:
        """`mlp_bias`."""
        return bool(config.get("mlp_bias", False))
