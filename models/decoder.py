"""The decoder of every family here: a thin torch module whose cache goes in and out explicitly.

Arithmetic and its order are transformers' eager attention in float32; grouped queries are folded
into the query axis, so that no key or value is copied. Parameters carry their Hugging Face names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from models.layer_types import SLIDING_ATTENTION
from models.rope import Rope
from models.rotary import Rotary, logn_scale

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class DecoderShape:
    """The numbers that decide the graph.

    Attributes:
        hidden: Width of the residual stream.
        intermediate: Width of the gated MLP.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Width of a head.
        vocabulary: Rows of the embedding and of the head.
        epsilon: Of the RMS norms.
        rope: The rotary embedding.
        window: Positions that a row of a sliding layer sees; None where no layer slides.
        logn_length: Trained length of LogN attention scaling; None without it.
        has_head_norms: Whether each head of q and k goes through a norm before the rotary.
        qkv_bias: Whether q, k and v carry a bias.
        output_bias: Whether o carries a bias.
        mlp_bias: Whether gate, up and down carry a bias.
    """

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    epsilon: float
    rope: Rope
    window: int | None
    logn_length: int | None
    has_head_norms: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool


class Positions(NamedTuple):
    """What a layer takes of the positions: cos and sin, and the factor on queries, if any."""

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.epsilon))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + d/2) of each head, [1, heads, T, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Causal grouped-query attention over past and new keys."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.hidden, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.hidden, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, shape.hidden, bias=shape.output_bias)
        self.q_norm, self.k_norm = (
            RMSNorm(shape.head_dim, shape.epsilon) if shape.has_head_norms else nn.Identity()
            for _ in range(2)
        )
        self.shape = shape

    def forward(
        self,
        x: torch.Tensor,
        positions: Positions,
        mask: torch.Tensor,
        past: KeyValue,
    ) -> tuple[torch.Tensor, KeyValue]:
        shape, tokens = self.shape, x.shape[1]
        q = self.q_norm(self.q_proj(x).view(1, tokens, shape.heads, shape.head_dim))
        k = self.k_norm(self.k_proj(x).view(1, tokens, shape.kv_heads, shape.head_dim))
        v = self.v_proj(x).view(1, tokens, shape.kv_heads, shape.head_dim).transpose(1, 2)
        q, k = (rotate(y.transpose(1, 2), positions.cos, positions.sin) for y in (q, k))
        if positions.query_scale is not None:
            q = q * positions.query_scale
        keys, values = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)

        group = shape.heads // shape.kv_heads
        q = q.reshape(1, shape.kv_heads, group, tokens, shape.head_dim)
        scores = torch.matmul(q, keys.unsqueeze(2).transpose(3, 4)) * shape.head_dim**-0.5
        weights = torch.softmax(scores + mask, dim=-1)
        context = torch.matmul(weights, values.unsqueeze(2))
        context = context.reshape(1, shape.heads, tokens, shape.head_dim).transpose(1, 2)
        context = context.reshape(1, tokens, shape.heads * shape.head_dim)
        return self.o_proj(context), (keys, values)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020)."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=shape.mlp_bias)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=shape.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.mlp = MLP(shape)

    def forward(
        self,
        x: torch.Tensor,
        positions: Positions,
        mask: torch.Tensor,
        past: KeyValue,
    ) -> tuple[torch.Tensor, KeyValue]:
        attended, present = self.self_attn(self.input_layernorm(x), positions, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Decoder(nn.Module):
    """Embedding, layers, final norm.

    A mask is made once for each kind of layer, of finite values: a row that sees nothing (padding,
    past the window's edge) is a mean and not NaN.
    """

    def __init__(self, shape: DecoderShape, kinds: Sequence[str]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in kinds)
        self.norm = RMSNorm(shape.hidden, shape.epsilon)
        self.rotary_emb = Rotary(shape.rope, shape.head_dim)
        self.shape, self.kinds = shape, tuple(kinds)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Sequence[KeyValue],
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        x = self.embed_tokens(input_ids)
        logn = self.shape.logn_length
        scale = None if logn is None else logn_scale(position_ids, logn)
        cos, sin = self.rotary_emb(position_ids, attention_mask)
        positions = Positions(cos, sin, scale)
        masks = self._masks(attention_mask, input_ids.shape[1], past_key_values[0][0].shape[2])
        present = []
        layers = zip(self.layers, self.kinds, past_key_values, strict=True)
        for layer, kind, past_key_value in layers:
            x, key_value = layer(x, positions, masks[kind], past_key_value)
            present.append(key_value)
        return self.norm(x), present

    def _masks(
        self, attention_mask: torch.Tensor, tokens: int, past: int
    ) -> dict[str, torch.Tensor]:
        """For each kind of layer [T, past + T]: zero where a row may see a column."""
        device = attention_mask.device
        columns = torch.arange(past + tokens, device=device)[None, :]
        rows = past + torch.arange(tokens, device=device)[:, None]
        causal = (columns <= rows) & (attention_mask != 0)
        masks = {}
        for kind in dict.fromkeys(self.kinds):
            allowed = causal
            if kind == SLIDING_ATTENTION:
                assert self.shape.window is not None, "a sliding layer has a window"
                allowed = causal & (columns > rows - self.shape.window)
            masks[kind] = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
        return masks


class CausalLM(nn.Module):
    """The decoder and its head; a tied head is the embedding under its own name."""

    def __init__(self, shape: DecoderShape, kinds: Sequence[str]) -> None:
        super().__init__()
        self.model = Decoder(shape, kinds)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: Sequence[KeyValue],
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        x, present = self.model(input_ids, attention_mask, position_ids, past_key_values)
        return self.lm_head(x), present
