"""Names are provenance: `model.layers.3.self_attn.q_proj/MatMul`, a module path and an operator."""

import re

_LAYER = re.compile(r"^model\.layers\.(\d+)(?=[./]|$)")
_CACHE = re.compile(r"^(?:past_key_values|present)\.(\d+)(?=\.)")


def layer_of(name: str) -> int | None:
    """The decoder layer that a node, tensor or cache belongs to; None outside the layers."""
    found = _LAYER.match(name) or _CACHE.match(name)
    return int(found[1]) if found else None
