"""Kinds of layers: as transformers resolves them, and what it would stumble over is refused."""

from collections.abc import Mapping

import pytest
from transformers import Qwen2Config, Qwen3Config

from models.layer_types import layer_types, window_of, window_violations

FULL, SLIDING = "full_attention", "sliding_attention"
ACCEPTED: tuple[Mapping[str, object], ...] = (
    {},
    {"sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 90},
    {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    # Their own defaults: a window of 4096 from layer 28 on.
    {"use_sliding_window": True, "num_hidden_layers": 30},
    {"layer_types": [FULL] * 4},
    {"layer_types": None, "use_sliding_window": True, "max_window_layers": 3},
    {
        "layer_types": [FULL, SLIDING, SLIDING, FULL],
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 0,
    },
)


@pytest.mark.parametrize("theirs", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("keys", ACCEPTED)
def test_layers_are_those_of_transformers(
    keys: Mapping[str, object], theirs: type[Qwen2Config | Qwen3Config]
):
    config = {"num_hidden_layers": 4, **keys}
    resolved = theirs.from_dict(config)
    assert window_violations(config) == []
    assert list(layer_types(config)) == resolved.layer_types
    assert window_of(config) == resolved.sliding_window


@pytest.mark.parametrize(
    ("keys", "message", "where"),
    [
        (
            {"use_sliding_window": 1},
            "use_sliding_window is 1, expected true or false",
            "use_sliding_window",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 0},
            "sliding_window is 0, expected a positive integer or null",
            "sliding_window",
        ),
        (
            {"use_sliding_window": True, "max_window_layers": None},
            "max_window_layers is None, expected the number of layers without a window",
            "max_window_layers",
        ),
        (
            {"layer_types": [FULL]},
            "layer_types is ['full_attention'], expected a list of 2 layer types",
            "layer_types",
        ),
        (
            {"layer_types": FULL},
            "layer_types is 'full_attention', expected a list of 2 layer types",
            "layer_types",
        ),
        (
            {"layer_types": [FULL, "chunked_attention"]},
            "layer type 'chunked_attention' is not supported yet",
            "layer_types",
        ),
        (
            {"layer_types": [FULL, SLIDING]},
            "layer_types names 'sliding_attention' and there is no window",
            "layer_types",
        ),
        (
            {"layer_types": [FULL, SLIDING], "use_sliding_window": True, "sliding_window": None},
            "layer_types names 'sliding_attention' and there is no window",
            "layer_types",
        ),
    ],
)
def test_what_is_refused(keys: Mapping[str, object], message: str, where: str):
    (error,) = window_violations({"num_hidden_layers": 2, **keys})
    assert (error.message, error.where) == (message, where)
