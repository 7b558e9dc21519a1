"""Qwen3 (`model_type: qwen3`): q and k are normed by head, biases only with `attention_bias`."""

from collections.abc import Mapping
from typing import ClassVar

from models.qwen2 import Qwen2


class Qwen3(Qwen2):
    """Qwen2 with q_norm and k_norm before the rotary, and a head_dim of its own."""

    model_types: ClassVar = ("qwen3",)
    default_head_dim: ClassVar = 128
    has_head_norms: ClassVar = True

    def has_qkv_bias(self, config: Mapping[str, object]) -> bool:
        """`attention_bias`."""
        return bool(config.get("attention_bias", False))

    def has_output_bias(self, config: Mapping[str, object]) -> bool:
        """`attention_bias` covers o_proj, too."""
        return bool(config.get("attention_bias", False))
