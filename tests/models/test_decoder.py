"""The torch module against transformers' eager attention in float32, without the exporter."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_factory import change_config, change_tensors, write_checkpoint
from family_variants import VARIANTS
from numpy_model import float64_logits
from safetensors.torch import load_file
from traced_models import FAMILIES
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from compiler.contracts.model_base import ModelFamily
from models.decoder import rotate

VOCABULARY = 80
_QWEN3 = {"model_type": "qwen3", "hidden": 48, "heads": 6, "kv_heads": 3, "head_dim": 10}
# The factory's arguments, and keys of config.json that it does not write.
GRID: Mapping[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
    "mha, tied": ({"hidden": 64, "heads": 4, "kv_heads": 4, "tied": True}, {}),
    "gqa 7:1": ({"hidden": 56, "heads": 7, "kv_heads": 1}, {}),
    "own head_dim": ({"hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 20}, {}),
    "heads no power of two": ({"hidden": 72, "heads": 6, "kv_heads": 3, "tied": True}, {}),
    "one layer, theta 1e6": (
        {"hidden": 64, "heads": 4, "kv_heads": 2, "layers": 1},
        {"rope_theta": 1e6},
    ),
    "rope_parameters": (
        {"hidden": 64, "heads": 4, "kv_heads": 2},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
    "large epsilon": ({"hidden": 64, "heads": 4, "kv_heads": 2}, {"rms_norm_eps": 0.1}),
    "llama": ({"hidden": 64, "heads": 4, "kv_heads": 2, "model_type": "llama"}, {}),
    "llama with biases": (
        {"hidden": 64, "heads": 4, "kv_heads": 2, "model_type": "llama", "tied": True},
        {"attention_bias": True, "mlp_bias": True},
    ),
    "qwen3 with biases": (
        {**_QWEN3, "tied": True},
        {"attention_bias": True, "head_dim": 10},
    ),
    **VARIANTS,
    # Of all layers, and shorter than what is past.
    "window of two": (
        _QWEN3,
        {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0},
    ),
    "dynamic from the first window on": (
        {"hidden": 64, "heads": 4, "kv_heads": 2},
        {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 4},
    ),
    "dynamic from the second window on": (
        {"hidden": 64, "heads": 4, "kv_heads": 2},
        {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 10},
    ),
}
IN_TRANSFORMERS = [name for name in GRID if name != "logn"]


def _family(config: Mapping[str, object]) -> ModelFamily:
    return FAMILIES[str(config["model_type"])]


def _write(folder: Path, name: str) -> Mapping[str, object]:
    arguments, keys = GRID[name]
    write_checkpoint(folder, **{"intermediate": 40, "vocabulary": VOCABULARY, **arguments})
    change_config(folder, **keys)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(5)
    present = load_file(folder / "model.safetensors")
    change_tensors(
        folder,
        {
            tensor: random.standard_normal(shape).astype(np.float32)
            for tensor, shape in _family(config).tensors(config).items()
            if tensor not in present
        },
    )
    return config


def _ours(folder: Path, config: Mapping[str, object]) -> torch.nn.Module:
    family = _family(config)
    module = family.module(config, family.layer_kinds(config)).eval()
    state = load_file(folder / "model.safetensors")
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    state |= {name: torch.from_numpy(array) for name, array in family.buffers(config).items()}
    parameters = dict(module.named_parameters()) | dict(module.named_buffers())
    assert set(parameters) == set(state)
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])
    return module


def _cached(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        found.append((layer.keys, layer.values))
    return found


def _from_end(rows: torch.Tensor, length: int) -> torch.Tensor:
    """A copy, filled up at its beginning to `length` rows."""
    return torch.nn.functional.pad(rows, (0, 0, length - rows.shape[2], 0), value=9.0).clone()


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_equals_transformers(tmp_path: Path, name: str):
    config = _write(tmp_path, name)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = _ours(tmp_path, config)
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(VOCABULARY, (1, 13), generator=generator)
    cut, valid, total = 5, 11, 13
    mask = (torch.arange(total) < valid).long()[None]
    positions = torch.arange(total)[None]
    with torch.no_grad():
        cache = DynamicCache(config=theirs.config)
        theirs(ids[:, :cut], past_key_values=cache, use_cache=True)
        # A sliding layer's cache keeps its window; what it dropped must not matter.
        past = [(_from_end(keys, cut), _from_end(values, cut)) for keys, values in _cached(cache)]
        # Padding would count as tokens where the rotary depends on their number.
        wanted = theirs(
            ids[:, cut:valid],
            position_ids=positions[:, cut:valid],
            past_key_values=cache,
            use_cache=True,
        ).logits
        logits, present = ours(ids[:, cut:], mask, positions[:, cut:], past)
    assert logits.shape == (1, total - cut, VOCABULARY)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:, : valid - cut], wanted, rtol=0, atol=1e-5)
    assert len(present) == len(cache.layers) == config["num_hidden_layers"]
    for ours_and_theirs in zip(present, _cached(cache), strict=True):
        for found, expected in zip(*ours_and_theirs, strict=True):
            kept = found[:, :, valid - expected.shape[2] : valid]
            torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [8, 12, 13, 40])
def test_logn_scaling_equals_float64(tmp_path: Path, length: int):
    """Up to the trained length of 12, at it, past it, and far past it."""
    config = _write(tmp_path, "logn")
    tokens = np.random.default_rng(length).integers(0, VOCABULARY, length).tolist()
    stored = {k: v.numpy() for k, v in load_file(tmp_path / "model.safetensors").items()}
    numbers = {key: number for key, number in config.items() if isinstance(number, int | float)}
    wanted = float64_logits(numbers, stored, tokens, logn_length=12)
    ours = _ours(tmp_path, config)
    empty = [(torch.zeros(1, 2, 0, 16), torch.zeros(1, 2, 0, 16))] * 2
    with torch.no_grad():
        logits, _ = ours(
            torch.tensor([tokens]), torch.ones(1, length).long(), torch.arange(length)[None], empty
        )
    np.testing.assert_allclose(logits[0].numpy(), wanted, rtol=0, atol=1e-5)
    # Scaling shows where it should, and only there.
    plain = float64_logits(numbers, stored, tokens, logn_length=1000)
    differs = np.abs(plain - wanted).max(axis=1) > 1e-6
    assert differs.tolist() == [position + 1 > 12 for position in range(length)]


def test_a_fully_masked_row_is_finite(tmp_path: Path):
    config = _write(tmp_path, "mha, tied")
    ours = _ours(tmp_path, config)
    empty = [(torch.zeros(1, 4, 0, 16), torch.zeros(1, 4, 0, 16))] * 2
    with torch.no_grad():
        logits, _ = ours(
            torch.tensor([[1, 2]]), torch.zeros(1, 2).long(), torch.arange(2)[None], empty
        )
    assert torch.isfinite(logits).all()


def test_rotate_turns_pairs_half_a_head_apart():
    x = torch.arange(8.0).view(1, 1, 1, 8)
    angle = torch.full((1, 1, 1, 8), np.pi / 2)
    found = rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(found.flatten(), torch.tensor([-4.0, -5, -6, -7, 0, 1, 2, 3]))
