"""Taps of transformers: which, in which order, in which shape, and with which values.

Values are held against a float64 calculation from config.json and the tensors alone.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from safetensors.numpy import load_file
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.runner import Runner
from compiler.contracts.taps import Observer, Tap, taps_of
from compiler.contracts.weights import CheckpointRef
from targets.torch.target import TorchTarget

PROMPT, NEXT = [5, 17, 3, 44, 9, 71, 2, 30, 8], 25
MODELS = ["mha", "own-head-dim", "qwen3", "llama", "sliding"]
LAYERS = 2

Rows = Mapping[Tap, np.ndarray]


class Listing(Observer):
    """Every tap of one call, in the order in which they came."""

    def __init__(self):
        self.seen: list[tuple[Tap, np.ndarray]] = []

    def see(self, tap: Tap, rows: np.ndarray) -> None:
        self.seen.append((tap, rows))


def listed(runner: Runner, tokens: Sequence[int]) -> tuple[Listing, np.ndarray]:
    listing = Listing()
    runner.observe(listing)
    return listing, runner.extend(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_every_tap_comes_once_a_call_in_the_order_of_computation(
    traced_models: TracedModels, name: str
):
    runner = TorchTarget().open(traced_models.checkpoint(name, layers=LAYERS))
    tensors = traced_models.checkpoint(name, layers=LAYERS).tensors
    hidden = tensors["model.norm.weight"].shape[0]
    query, key, middle = (
        tensors[f"model.layers.0.{part}_proj.weight"].shape[0]
        for part in ("self_attn.q", "self_attn.k", "mlp.up")
    )
    widths = {
        **dict.fromkeys(("q", "q_rot", "attn"), query),
        **dict.fromkeys(("k", "v", "k_rot", "keys", "values"), key),
        **dict.fromkeys(("gate", "up", "act"), middle),
        "logits": VOCABULARY,
    }
    for tokens in (PROMPT, [NEXT]):
        listing, logits = listed(runner, tokens)
        assert [tap for tap, _ in listing.seen] == list(taps_of(runner.layers))
        for tap, rows in listing.seen:
            count = 1 if tap.point == "logits" else len(tokens)
            shape = (count, widths.get(tap.point, hidden))
            assert (rows.dtype, rows.shape) == (np.float32, shape), tap
        np.testing.assert_array_equal(listing.seen[-1][1][0], logits)


@pytest.mark.parametrize("name", MODELS)
def test_taps_hold_what_the_model_is_defined_to_compute(traced_models: TracedModels, name: str):
    checkpoint = traced_models.checkpoint(name, layers=LAYERS)
    runner = TorchTarget().open(checkpoint)
    first, second = (dict(listed(runner, tokens)[0].seen) for tokens in (PROMPT, [NEXT]))
    wanted = calculated(checkpoint, [*PROMPT, NEXT])
    for tap in taps_of(LAYERS):
        found = np.concatenate((first[tap], second[tap]))
        rows = wanted[tap][[-2, -1]] if tap.point == "logits" else wanted[tap]
        np.testing.assert_allclose(found, rows, rtol=0, atol=2e-5, err_msg=str(tap))
    for layer in range(LAYERS):
        for rows, point in zip(runner.cache_rows(layer, 2, 10), ("keys", "values"), strict=True):
            np.testing.assert_allclose(rows, wanted[Tap(layer, point)][2:], rtol=0, atol=2e-5)


# -- the calculation


def calculated(checkpoint: CheckpointRef, tokens: Sequence[int]) -> Rows:
    """Every tap of one pass over `tokens`, with the logits of each, in float64."""
    config = {
        key: value for key, value in checkpoint.config.items() if isinstance(value, int | float)
    }
    weights = {
        name: tensor.astype(np.float64)
        for name, tensor in load_file(checkpoint.path / "model.safetensors").items()
    }
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    width = int(config.get("head_dim", config["hidden_size"] // heads))
    positions = np.arange(len(tokens))
    angles = np.outer(positions, config["rope_theta"] ** (-np.arange(0, width, 2) / width))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return x / scale * weights[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def rotated(x: np.ndarray, count: int, norm_name: str) -> np.ndarray:
        x = x.reshape(-1, count, width)
        x = norm(x, norm_name) if f"{norm_name}.weight" in weights else x
        low, high = np.split(x, 2, axis=-1)
        turned = np.concatenate((low * cos - high * sin, high * cos + low * sin), axis=-1)
        return turned.reshape(len(x), -1)

    def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: float) -> np.ndarray:
        k, v = (np.repeat(x.reshape(-1, kv_heads, width), heads // kv_heads, 1) for x in (k, v))
        scores = np.einsum("qhd,khd->hqk", q.reshape(-1, heads, width), k) / math.sqrt(width)
        distance = positions[:, None] - positions
        shares = np.exp(np.where((distance >= 0) & (distance < window), scores, -np.inf))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", shares, v).reshape(len(tokens), -1)

    taps = {Tap(None, "embed"): weights["model.embed_tokens.weight"][list(tokens)]}
    hidden = taps[Tap(None, "embed")]
    for layer in range(int(config["num_hidden_layers"])):
        name = f"model.layers.{layer}"
        slides = config.get("use_sliding_window") and layer >= config["max_window_layers"]
        x = norm(hidden, f"{name}.input_layernorm")
        found = {"norm1": x}
        found |= {point: linear(x, f"{name}.self_attn.{point}_proj") for point in "qkv"}
        found["q_rot"] = rotated(found["q"], heads, f"{name}.self_attn.q_norm")
        found["k_rot"] = rotated(found["k"], kv_heads, f"{name}.self_attn.k_norm")
        found |= {"keys": found["k_rot"], "values": found["v"]}
        window = config["sliding_window"] if slides else math.inf
        found["attn"] = attended(found["q_rot"], found["keys"], found["values"], window)
        found["o"] = linear(found["attn"], f"{name}.self_attn.o_proj")
        found["resid1"] = hidden + found["o"]
        x = found["norm2"] = norm(found["resid1"], f"{name}.post_attention_layernorm")
        found |= {point: linear(x, f"{name}.mlp.{point}_proj") for point in ("gate", "up")}
        found["act"] = found["gate"] / (1 + np.exp(-found["gate"])) * found["up"]
        found["down"] = linear(found["act"], f"{name}.mlp.down_proj")
        hidden = found["resid2"] = found["resid1"] + found["down"]
        taps |= {Tap(layer, point): rows for point, rows in found.items()}
    taps[Tap(None, "norm")] = norm(hidden, "model.norm")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return {**taps, Tap(None, "logits"): taps[Tap(None, "norm")] @ head.T}
