"""Qwen2 and Qwen2.5 (`model_type: qwen2`): biases on q, k and v, none elsewhere.

Configuration keys and their defaults are transformers' `Qwen2Config`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from compiler.contracts.errors import CheckpointError, CompilerError
from compiler.contracts.model_base import ModelFamily

if TYPE_CHECKING:
    import numpy as np
    import torch

    from models.decoder import DecoderShape

FULL_ATTENTION = "full_attention"

# key -> what it must be (at least 1 for integers)
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


class Qwen2(ModelFamily):
    """Decoder-only, pre-norm, SwiGLU, rotary embedding of type `default`, grouped queries."""

    model_types: ClassVar = ("qwen2",)
    defaults: ClassVar[Mapping[str, object]] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}

    def has_qkv_bias(self, config: Mapping[str, object]) -> bool:
        """Qwen2 always has them; config.json has no key for it."""
        del config
        return True

    def has_output_bias(self, config: Mapping[str, object]) -> bool:
        """Whether o_proj has a bias."""
        del config
        return False

    def has_mlp_bias(self, config: Mapping[str, object]) -> bool:
        """Whether gate, up and down have a bias."""
        del config
        return False

    def violations(self, config: Mapping[str, object]) -> list[CompilerError]:
        """Sizes that are missing or do not divide, and features that are not supported yet."""
        found = [
            CheckpointError(f"{key} is {config.get(key)!r}, expected a positive integer", where=key)
            for key in _SIZES
            if not _is_positive_integer(config.get(key))
        ]
        if found:
            return list(found)
        for key in ("num_key_value_heads", "head_dim"):
            if config.get(key) is not None and not _is_positive_integer(config.get(key)):
                message = f"{key} is {config[key]!r}, expected a positive integer"
                return [CheckpointError(message, where=key)]
        numbers = {"rms_norm_eps": config.get("rms_norm_eps"), "rope_theta": _rope_theta(config)}
        found += [
            CheckpointError(f"{key} is {number!r}, expected a positive number", where=key)
            for key, number in numbers.items()
            if number is not None and not _is_positive_number(number)
        ]
        heads, kv_heads = _integer(config, "num_attention_heads"), self.kv_heads(config)
        if heads % kv_heads:
            found.append(
                CheckpointError(
                    f"num_attention_heads {heads} is not a multiple of "
                    f"num_key_value_heads {kv_heads}",
                    where="num_key_value_heads",
                )
            )
        if config.get("head_dim") is None and _integer(config, "hidden_size") % heads:
            found.append(
                CheckpointError(
                    f"hidden_size {config['hidden_size']} is not a multiple of {heads} heads",
                    where="hidden_size",
                    hint="such a checkpoint names its head_dim",
                )
            )
        elif self.head_dim(config) % 2:
            found.append(
                CheckpointError(f"head_dim {self.head_dim(config)} is odd", where="head_dim")
            )
        return [*found, *self._unsupported(config)]

    def _unsupported(self, config: Mapping[str, object]) -> list[CompilerError]:
        found = []
        rope = _rope(config)
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            found.append(_not_yet(f"rope type '{rope_type}'", _rope_key(config), "'default'"))
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            found.append(_not_yet("a partial rotary embedding", "partial_rotary_factor", "1.0"))
        if config.get("use_sliding_window"):
            found.append(_not_yet("sliding-window attention", "use_sliding_window", "false"))
        kinds = config.get("layer_types")
        if isinstance(kinds, list) and any(kind != FULL_ATTENTION for kind in kinds):
            found.append(_not_yet("a mix of layer types", "layer_types", f"'{FULL_ATTENTION}'"))
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            found.append(_not_yet(f"activation '{config['hidden_act']}'", "hidden_act", "'silu'"))
        if config.get("quantization_config") is not None:
            found.append(
                _not_yet("a quantized checkpoint", "quantization_config", "a float checkpoint")
            )
        return found

    def kv_heads(self, config: Mapping[str, object]) -> int:
        """Key and value heads; without the key, as many as query heads."""
        if config.get("num_key_value_heads") is None:
            return _integer(config, "num_attention_heads")
        return _integer(config, "num_key_value_heads")

    def head_dim(self, config: Mapping[str, object]) -> int:
        """The named head_dim, or hidden over heads."""
        if config.get("head_dim") is None:
            return _integer(config, "hidden_size") // _integer(config, "num_attention_heads")
        return _integer(config, "head_dim")

    def tensors(self, config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
        """The Hugging Face names and shapes of this configuration."""
        hidden, inner = _integer(config, "hidden_size"), _integer(config, "intermediate_size")
        queries = _integer(config, "num_attention_heads") * self.head_dim(config)
        keys = self.kv_heads(config) * self.head_dim(config)
        linears = {
            "self_attn.q_proj": ((queries, hidden), self.has_qkv_bias(config)),
            "self_attn.k_proj": ((keys, hidden), self.has_qkv_bias(config)),
            "self_attn.v_proj": ((keys, hidden), self.has_qkv_bias(config)),
            "self_attn.o_proj": ((hidden, queries), self.has_output_bias(config)),
            "mlp.gate_proj": ((inner, hidden), self.has_mlp_bias(config)),
            "mlp.up_proj": ((inner, hidden), self.has_mlp_bias(config)),
            "mlp.down_proj": ((hidden, inner), self.has_mlp_bias(config)),
        }
        vocabulary = (_integer(config, "vocab_size"), hidden)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocabulary}
        for index in range(_integer(config, "num_hidden_layers")):
            layer = f"model.layers.{index}"
            found[f"{layer}.input_layernorm.weight"] = (hidden,)
            found[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
            for module, (shape, has_bias) in linears.items():
                found[f"{layer}.{module}.weight"] = shape
                if has_bias:
                    found[f"{layer}.{module}.bias"] = shape[:1]
        found["model.norm.weight"] = (hidden,)
        if not config.get("tie_word_embeddings", False):
            found["lm_head.weight"] = vocabulary
        return found

    def layer_kinds(self, config: Mapping[str, object]) -> tuple[str, ...]:
        """Full attention everywhere."""
        return (FULL_ATTENTION,) * _integer(config, "num_hidden_layers")

    def cache_shape(self, config: Mapping[str, object]) -> tuple[int, int]:
        """(kv_heads, head_dim)."""
        return self.kv_heads(config), self.head_dim(config)

    def module(self, config: Mapping[str, object], kinds: Sequence[str]) -> "torch.nn.Module":
        """`models.decoder.CausalLM` of this configuration."""
        from models.decoder import CausalLM

        return CausalLM(self._shape(config), len(kinds))

    def buffers(self, config: Mapping[str, object]) -> dict[str, "np.ndarray"]:
        """The rotary's inverse frequencies."""
        from models.decoder import inverse_frequencies

        return {"model.rotary_emb.inv_freq": inverse_frequencies(self._shape(config)).numpy()}

    def probe_config(
        self, config: Mapping[str, object], *, window: int, context: int
    ) -> dict[str, object]:
        """Six heads in groups of three at width 8, or fewer where the model has one of a kind."""
        del window, context
        heads, kv_heads = _integer(config, "num_attention_heads"), self.kv_heads(config)
        probe_kv_heads, group = min(kv_heads, 2), min(heads // kv_heads, 3)
        probe_heads, head_dim = probe_kv_heads * group, 8
        is_square = _integer(config, "hidden_size") == heads * self.head_dim(config)
        return {
            **config,
            "hidden_size": probe_heads * head_dim if is_square else probe_heads * head_dim + 4,
            "intermediate_size": 40,
            "num_attention_heads": probe_heads,
            "num_key_value_heads": probe_kv_heads,
            "head_dim": head_dim,
            "vocab_size": 48 + _integer(config, "vocab_size") % 16,
        }

    def _shape(self, config: Mapping[str, object]) -> "DecoderShape":
        from models.decoder import DecoderShape

        return DecoderShape(
            hidden=_integer(config, "hidden_size"),
            intermediate=_integer(config, "intermediate_size"),
            heads=_integer(config, "num_attention_heads"),
            kv_heads=self.kv_heads(config),
            head_dim=self.head_dim(config),
            vocabulary=_integer(config, "vocab_size"),
            epsilon=_number(config.get("rms_norm_eps"), self.defaults["rms_norm_eps"]),
            rope_theta=_number(_rope_theta(config), self.defaults["rope_theta"]),
            qkv_bias=self.has_qkv_bias(config),
            output_bias=self.has_output_bias(config),
            mlp_bias=self.has_mlp_bias(config),
        )


def _rope(config: Mapping[str, object]) -> Mapping[str, object]:
    """The rotary's settings: transformers 5 writes rope_parameters, older versions rope_scaling."""
    rope = config.get(_rope_key(config))
    return rope if isinstance(rope, Mapping) else {}


def _rope_key(config: Mapping[str, object]) -> str:
    has_new = isinstance(config.get("rope_parameters"), Mapping)
    return "rope_parameters" if has_new else "rope_scaling"


def _rope_theta(config: Mapping[str, object]) -> object:
    return _rope(config).get("rope_theta", config.get("rope_theta"))


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _integer(config: Mapping[str, object], key: str) -> int:
    value = config[key]
    assert isinstance(value, int), f"{key} is checked by violations()"
    return value


def _number(value: object, default: object) -> float:
    chosen = default if value is None else value
    assert isinstance(chosen, int | float), f"{chosen!r} is not a number"
    return float(chosen)


def _not_yet(what: str, key: str, supported: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is not supported yet",
        where=f"config.json: {key}",
        hint=f"supported: {supported}",
        code="not-supported-yet",
    )
