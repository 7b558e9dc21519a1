"""A Qwen2 with LogN attention scaling in numpy float64, from config.json and the tensors alone."""

import math
from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]


def float64_logits(
    config: Mapping[str, float], tensors: Tensors, tokens: list[int], *, logn_length: int
) -> np.ndarray:
    """[len(tokens), vocabulary]; the query at position p is scaled by log(p + 1), as it says."""
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    width = int(config["hidden_size"]) // heads
    count = len(tokens)
    weights = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    angles = np.outer(np.arange(count), config["rope_theta"] ** (-np.arange(0, width, 2) / width))
    growth = [math.log(p + 1, logn_length) if p + 1 > logn_length else 1.0 for p in range(count)]
    hidden = weights["model.embed_tokens.weight"][tokens]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + config["rms_norm_eps"]) * weights[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def rotated(x: np.ndarray) -> np.ndarray:
        first, second = x[..., : width // 2], x[..., width // 2 :]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)

    for index in range(int(config["num_hidden_layers"])):
        layer = f"model.layers.{index}"
        x = norm(hidden, f"{layer}.input_layernorm")
        q = rotated(linear(x, f"{layer}.self_attn.q_proj").reshape(count, heads, width))
        k = rotated(linear(x, f"{layer}.self_attn.k_proj").reshape(count, kv_heads, width))
        v = linear(x, f"{layer}.self_attn.v_proj").reshape(count, kv_heads, width)
        q = q * np.array(growth)[:, None, None]
        attended = np.zeros((count, heads, width))
        for head in range(heads):
            source = head // (heads // kv_heads)
            for row in range(count):
                scores = k[: row + 1, source] @ q[row, head] / math.sqrt(width)
                shares = np.exp(scores - scores.max())
                attended[row, head] = shares @ v[: row + 1, source] / shares.sum()
        hidden = hidden + linear(attended.reshape(count, -1), f"{layer}.self_attn.o_proj")
        x = norm(hidden, f"{layer}.post_attention_layernorm")
        gate = linear(x, f"{layer}.mlp.gate_proj")
        up = linear(x, f"{layer}.mlp.up_proj")
        hidden = hidden + linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(hidden, "model.norm") @ head.T
