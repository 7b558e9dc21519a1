"""Small models of what the families differ in; windows of 16 and 40 positions pass their lengths.

Each is a name, the checkpoint factory's arguments, and the keys of config.json beside its own.
"""

from collections.abc import Mapping
from pathlib import Path

from checkpoint_factory import change_config, write_checkpoint

_PLAIN: Mapping[str, object] = {"hidden": 64, "heads": 4, "kv_heads": 2}
_SHORT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
_LONG = [1.0, 1.3, 1.9, 2.7, 4.1, 6.0, 9.0, 13.0]
# The length where rope types change, and windows end, lies within the second window.
VARIANTS: Mapping[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
    "qwen3": (
        {"model_type": "qwen3", "hidden": 48, "heads": 6, "kv_heads": 3, "head_dim": 10},
        {"rope_theta": 1e6},
    ),
    "linear": (_PLAIN, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "yarn": (
        _PLAIN,
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "dynamic": (
        _PLAIN,
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 20},
    ),
    "longrope": (
        _PLAIN,
        {
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 4.0,
                "original_max_position_embeddings": 20,
                "short_factor": _SHORT,
                "long_factor": _LONG,
            }
        },
    ),
    "sliding": (
        _PLAIN,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    # A window of every layer, longer than a prefill window.
    "qwen3-sliding": (
        {"model_type": "qwen3", **_PLAIN, "head_dim": 16, "tied": True},
        {
            "use_sliding_window": True,
            "sliding_window": 21,
            "layer_types": ["sliding_attention", "sliding_attention"],
        },
    ),
    "logn": (_PLAIN, {"use_logn_attn": True, "seq_length": 12}),
}


def write_variant(name: str, folder: Path, *, layers: int, vocabulary: int) -> None:
    """Write the checkpoint of a variant."""
    arguments, keys = VARIANTS[name]
    write_checkpoint(
        folder, **{"intermediate": 40, "vocabulary": vocabulary, "layers": layers, **arguments}
    )
    change_config(folder, **keys)
