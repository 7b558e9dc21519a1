"""The probe: small, random, nothing neutral, and of the model's form."""

from pathlib import Path

import numpy as np
import pytest
from traced_models import TracedModels

from compiler.contracts.weights import StoredTensor
from compiler.numerics.isomorphism import difference
from compiler.numerics.probe import probe_lengths, random_rows
from models.qwen2 import Qwen2

TENSORS = {
    "a.weight": StoredTensor(Path(), 0, (8, 64), "float32"),
    "b.weight": StoredTensor(Path(), 0, (8, 64), "float32"),
    "norm.weight": StoredTensor(Path(), 0, (64,), "bfloat16"),
    "q_proj.bias": StoredTensor(Path(), 0, (64,), "float32"),
}


def test_weights_are_repeatable_different_and_never_neutral():
    read, again = random_rows(TENSORS), random_rows(TENSORS)
    a = read("a.weight", 0, 8)
    np.testing.assert_array_equal(a[2:5], again("a.weight", 2, 5))
    assert not np.array_equal(a, read("b.weight", 0, 8))
    assert not np.array_equal(a, random_rows(TENSORS, seed=1)("a.weight", 0, 8))
    assert a.std() == pytest.approx(1 / 8, rel=0.1)
    norm, bias = read("norm.weight", 0, 64), read("q_proj.bias", 0, 64)
    assert norm.dtype.name == "bfloat16"
    assert 0.5 <= norm.min() < norm.max() <= 1.5
    assert (bias != 0).all()


@pytest.mark.parametrize(
    ("window", "context", "wanted"),
    [(1024, 2048, (16, 48)), (512, 512, (16, 16)), (512, None, (16, None))],
)
def test_lengths(window: int, context: int | None, wanted: tuple[int, int | None]):
    assert probe_lengths(window, context) == wanted


@pytest.mark.parametrize("name", ["mha", "gqa", "own-head-dim", "llama"])
def test_the_probe_has_the_models_form(traced_models: TracedModels, name: str):
    programs, probe = traced_models.programs(name), traced_models.probe(name)
    for phase, program in programs.programs.items():
        assert difference(program, probe.programs.programs[phase]) is None
    assert probe.programs.stored_bytes() < programs.stored_bytes()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "wanted"),
    [(14, 2, (6, 2)), (16, 16, (2, 2)), (8, 1, (3, 1)), (1, 1, (1, 1)), (40, 20, (4, 2))],
)
def test_groups_of_heads_stay_groups(heads: int, kv_heads: int, wanted: tuple[int, int]):
    config = {
        "hidden_size": heads * 64,
        "intermediate_size": 4096,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 151665,
    }
    small = Qwen2().probe_config(
        config, window=16, context=48, model_window=512, model_context=1024
    )
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == wanted
    assert small["num_hidden_layers"] == 3
    vocabulary = small["vocab_size"]
    assert isinstance(vocabulary, int)
    assert vocabulary % 16 == 151665 % 16
    assert Qwen2().violations(small) == []
