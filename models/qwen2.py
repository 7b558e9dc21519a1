"""Qwen2 and Qwen2.5 (`model_type: qwen2`): biases on q, k and v, none elsewhere.

Configuration keys and their defaults are transformers' `Qwen2Config`; `use_logn_attn` with
`seq_length` is the first Qwen's. Other families are this one with other answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from compiler.contracts.errors import CheckpointError, CompilerError
from compiler.contracts.model_base import ModelFamily
from models.config_values import integer, is_integer, is_positive_number, not_yet, number, wrong
from models.layer_types import FULL_ATTENTION, layer_types, window_of, window_violations
from models.probe import ProbeLengths, probe_heads, probe_vocabulary
from models.rope import Rope, probe_rope, read_rope, rope_violations

if TYPE_CHECKING:
    import numpy as np
    import torch

    from models.decoder import DecoderShape

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
_EPSILON = 1e-6
# The probe's widths.
_HEAD_DIM, _INTERMEDIATE, _VOCABULARY = 8, 40, 48


class Qwen2(ModelFamily):
    """Decoder-only, pre-norm, SwiGLU, rotary embedding, grouped queries, sliding windows.

    Class attributes:
        default_length: `max_position_embeddings` where config.json lacks it.
        default_head_dim: `head_dim` where config.json lacks it; None: hidden over heads.
        has_windows: Whether layers may slide.
        has_head_norms: Whether q and k are normed by head before the rotary.
    """

    model_types: ClassVar = ("qwen2",)
    default_length: ClassVar[int] = 32768
    default_head_dim: ClassVar[int | None] = None
    has_windows: ClassVar[bool] = True
    has_head_norms: ClassVar[bool] = False

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
        found: list[CompilerError] = [
            wrong(key, config.get(key), "a positive integer")
            for key in _SIZES
            if not is_integer(config.get(key))
        ]
        found += [
            wrong(key, config[key], "a positive integer")
            for key in ("num_key_value_heads", "head_dim")
            if config.get(key) is not None and not is_integer(config[key])
        ]
        if found:
            return found
        return [
            *self._head_violations(config),
            *rope_violations(
                config, head_dim=self.head_dim(config), default_length=self.default_length
            ),
            *self._window_violations(config),
            *_logn_violations(config),
            *_other_violations(config),
        ]

    def _head_violations(self, config: Mapping[str, object]) -> Iterator[CompilerError]:
        heads, kv_heads = integer(config, "num_attention_heads"), self.kv_heads(config)
        if heads % kv_heads:
            yield CheckpointError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}",
                where="num_key_value_heads",
            )
        has_own = config.get("head_dim") is not None or self.default_head_dim is not None
        if not has_own and integer(config, "hidden_size") % heads:
            yield CheckpointError(
                f"hidden_size {config['hidden_size']} is not a multiple of {heads} heads",
                where="hidden_size",
                hint="such a checkpoint names its head_dim",
            )
        elif self.head_dim(config) % 2:
            yield CheckpointError(f"head_dim {self.head_dim(config)} is odd", where="head_dim")

    def _window_violations(self, config: Mapping[str, object]) -> list[CompilerError]:
        found = window_violations(config)
        if found or self.has_windows:
            return found
        if config.get("use_sliding_window"):
            return [not_yet("sliding-window attention", "use_sliding_window", "false")]
        return []

    def kv_heads(self, config: Mapping[str, object]) -> int:
        """Key and value heads; without the key, as many as query heads."""
        if config.get("num_key_value_heads") is None:
            return integer(config, "num_attention_heads")
        return integer(config, "num_key_value_heads")

    def head_dim(self, config: Mapping[str, object]) -> int:
        """The named head_dim, the family's, or hidden over heads."""
        if config.get("head_dim") is not None:
            return integer(config, "head_dim")
        if self.default_head_dim is not None:
            return self.default_head_dim
        return integer(config, "hidden_size") // integer(config, "num_attention_heads")

    def rope(self, config: Mapping[str, object]) -> Rope:
        """The rotary embedding."""
        return read_rope(config, default_length=self.default_length)

    def tensors(self, config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
        """The Hugging Face names and shapes of this configuration."""
        hidden, inner = integer(config, "hidden_size"), integer(config, "intermediate_size")
        queries = integer(config, "num_attention_heads") * self.head_dim(config)
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
        vocabulary = (integer(config, "vocab_size"), hidden)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocabulary}
        for index in range(integer(config, "num_hidden_layers")):
            layer = f"model.layers.{index}"
            found[f"{layer}.input_layernorm.weight"] = (hidden,)
            found[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
            for module, (shape, has_bias) in linears.items():
                found[f"{layer}.{module}.weight"] = shape
                if has_bias:
                    found[f"{layer}.{module}.bias"] = shape[:1]
            for norm in ("q_norm", "k_norm") if self.has_head_norms else ():
                found[f"{layer}.self_attn.{norm}.weight"] = (self.head_dim(config),)
        found["model.norm.weight"] = (hidden,)
        if not config.get("tie_word_embeddings", False):
            found["lm_head.weight"] = vocabulary
        return found

    def layer_kinds(self, config: Mapping[str, object]) -> tuple[str, ...]:
        """`full_attention` or `sliding_attention`, a layer each."""
        if self.has_windows:
            return layer_types(config)
        return (FULL_ATTENTION,) * integer(config, "num_hidden_layers")

    def cache_shape(self, config: Mapping[str, object]) -> tuple[int, int]:
        """(kv_heads, head_dim)."""
        return self.kv_heads(config), self.head_dim(config)

    def module(self, config: Mapping[str, object], kinds: Sequence[str]) -> "torch.nn.Module":
        """`models.decoder.CausalLM` of this configuration."""
        from models.decoder import CausalLM

        return CausalLM(self._shape(config), kinds)

    def buffers(self, config: Mapping[str, object]) -> dict[str, "np.ndarray"]:
        """The rotary's inverse frequencies."""
        from models.rotary import frequency_tables

        tables = frequency_tables(self.rope(config), self.head_dim(config))
        return {f"model.rotary_emb.{name}": table.numpy() for name, table in tables.items()}

    def probe_config(
        self,
        config: Mapping[str, object],
        *,
        window: int,
        context: int,
        model_window: int,
        model_context: int,
        ways: int = 1,
    ) -> dict[str, object]:
        """Six heads in groups of three at width 8, or fewer where the model has one of a kind."""
        lengths = ProbeLengths(window, context, model_window, model_context)
        heads, kv_heads = integer(config, "num_attention_heads"), self.kv_heads(config)
        probe_kv_heads, group = probe_heads(heads, kv_heads, ways)
        hidden = probe_kv_heads * group * _HEAD_DIM
        is_square = integer(config, "hidden_size") == heads * self.head_dim(config)
        found = probe_rope(
            config, head_dim=_HEAD_DIM, default_length=self.default_length, lengths=lengths
        )
        found |= {
            "hidden_size": hidden if is_square else hidden + 4,
            "intermediate_size": _INTERMEDIATE + -_INTERMEDIATE % ways,
            "num_attention_heads": probe_kv_heads * group,
            "num_key_value_heads": probe_kv_heads,
            "head_dim": _HEAD_DIM,
            "vocab_size": probe_vocabulary(integer(config, "vocab_size"), _VOCABULARY, ways),
        }
        reach, trained = window_of(config), _logn_length(config)
        if reach is not None:
            found["sliding_window"] = lengths.of(reach)
        if trained is not None:
            found["seq_length"] = lengths.of(trained)
        return found

    def _shape(self, config: Mapping[str, object]) -> "DecoderShape":
        from models.decoder import DecoderShape

        return DecoderShape(
            hidden=integer(config, "hidden_size"),
            intermediate=integer(config, "intermediate_size"),
            heads=integer(config, "num_attention_heads"),
            kv_heads=self.kv_heads(config),
            head_dim=self.head_dim(config),
            vocabulary=integer(config, "vocab_size"),
            epsilon=number(config.get("rms_norm_eps"), _EPSILON),
            rope=self.rope(config),
            window=window_of(config) if self.has_windows else None,
            logn_length=_logn_length(config),
            has_head_norms=self.has_head_norms,
            qkv_bias=self.has_qkv_bias(config),
            output_bias=self.has_output_bias(config),
            mlp_bias=self.has_mlp_bias(config),
        )


def _logn_length(config: Mapping[str, object]) -> int | None:
    """The trained length of LogN attention scaling; None without it."""
    return integer(config, "seq_length") if config.get("use_logn_attn") else None


def _logn_violations(config: Mapping[str, object]) -> Iterator[CompilerError]:
    is_used = config.get("use_logn_attn", False)
    if not isinstance(is_used, bool):
        yield wrong("use_logn_attn", is_used, "true or false")
    elif is_used and not is_integer(config.get("seq_length"), least=2):
        yield wrong("seq_length", config.get("seq_length"), "the trained length for use_logn_attn")
    if config.get("use_dynamic_ntk"):
        yield not_yet(
            "the first Qwen's dynamic NTK", "use_dynamic_ntk", "rope_scaling of type 'dynamic'"
        )


def _other_violations(config: Mapping[str, object]) -> Iterator[CompilerError]:
    epsilon = config.get("rms_norm_eps")
    if epsilon is not None and not is_positive_number(epsilon):
        yield wrong("rms_norm_eps", epsilon, "a positive number")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        yield not_yet(f"activation '{config['hidden_act']}'", "hidden_act", "'silu'")
    if config.get("quantization_config") is not None:
        yield not_yet("a quantized checkpoint", "quantization_config", "a float checkpoint")
