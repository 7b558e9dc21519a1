"""Which layers attend to everything before them, and which to a window of it.

`use_sliding_window`, `sliding_window`, `max_window_layers` and `layer_types` are resolved as in
transformers' `Qwen2Config` and `Qwen3Config`: without `use_sliding_window` there is no window, with
it the layers from `max_window_layers` on have one, unless `layer_types` names each layer.
"""

from collections.abc import Mapping

from compiler.contracts.errors import CheckpointError, CompilerError
from models.config_values import integer, is_integer, not_yet, wrong

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
_KINDS = (FULL_ATTENTION, SLIDING_ATTENTION)
# transformers' own, for configurations that lack the key.
_DEFAULT_WINDOW, _DEFAULT_FULL_LAYERS = 4096, 28


def window_of(config: Mapping[str, object]) -> int | None:
    """Positions that a row of a sliding layer sees, itself included; None without windows."""
    if not config.get("use_sliding_window", False):
        return None
    window = config.get("sliding_window", _DEFAULT_WINDOW)
    assert window is None or isinstance(window, int), "checked by violations()"
    return window


def layer_types(config: Mapping[str, object]) -> tuple[str, ...]:
    """The kind of each layer, in order."""
    named = config.get("layer_types")
    if isinstance(named, list):
        return tuple(str(kind) for kind in named)
    layers = integer(config, "num_hidden_layers")
    full = layers if window_of(config) is None else min(_full_layers(config), layers)
    return (FULL_ATTENTION,) * full + (SLIDING_ATTENTION,) * (layers - full)


def _full_layers(config: Mapping[str, object]) -> int:
    full = config.get("max_window_layers", _DEFAULT_FULL_LAYERS)
    assert isinstance(full, int), "checked by violations()"
    return full


def window_violations(config: Mapping[str, object]) -> list[CompilerError]:
    """What of these keys is no value of theirs, or contradicts another."""
    is_used = config.get("use_sliding_window", False)
    if not isinstance(is_used, bool):
        return [wrong("use_sliding_window", is_used, "true or false")]
    found: list[CompilerError] = []
    window = config.get("sliding_window", _DEFAULT_WINDOW)
    if is_used and window is not None and not is_integer(window):
        found.append(wrong("sliding_window", window, "a positive integer or null"))
    full = config.get("max_window_layers", _DEFAULT_FULL_LAYERS)
    if is_used and not is_integer(full, least=0):
        found.append(wrong("max_window_layers", full, "the number of layers without a window"))
    return found or _type_violations(config)


def _type_violations(config: Mapping[str, object]) -> list[CompilerError]:
    named, layers = config.get("layer_types"), integer(config, "num_hidden_layers")
    if named is None:
        return []
    if not isinstance(named, list) or len(named) != layers:
        return [wrong("layer_types", named, f"a list of {layers} layer types")]
    unknown = [kind for kind in named if kind not in _KINDS]
    if unknown:
        known = " and ".join(f"'{kind}'" for kind in _KINDS)
        return [not_yet(f"layer type '{unknown[0]}'", "layer_types", known)]
    if SLIDING_ATTENTION in named and window_of(config) is None:
        return [
            CheckpointError(
                f"layer_types names '{SLIDING_ATTENTION}' and there is no window",
                where="layer_types",
                hint="set use_sliding_window to true and sliding_window to its length",
            )
        ]
    return []
