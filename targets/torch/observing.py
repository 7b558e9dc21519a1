"""Taps of a transformers model, shown by hooks on its own modules for the length of one call.

What an observer puts in a tap's place is written into the tensor that the model holds. So whoever
reads that tensor reads the new values (the residual stream has two readers, and the cache is read
again by later calls), and its strides, by which a product picks its kernel, stay as they were.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compiler.contracts.taps import Observer, Tap, taps_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import DynamicCache, PreTrainedModel

    Show: TypeAlias = Callable[[Tap, Tensor], None]
    Rotation: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Place:
    """A tap at the edge of a module: what it gives, or what it takes."""

    module: str
    is_input: bool = False


_LAYER = "model.layers.{layer}"
# The other four lie inside attention's own code.
_PLACES: Mapping[str, _Place] = {
    "embed": _Place("model.embed_tokens"),
    "norm1": _Place(f"{_LAYER}.input_layernorm"),
    "q": _Place(f"{_LAYER}.self_attn.q_proj"),
    "k": _Place(f"{_LAYER}.self_attn.k_proj"),
    "v": _Place(f"{_LAYER}.self_attn.v_proj"),
    "attn": _Place(f"{_LAYER}.self_attn.o_proj", is_input=True),
    "o": _Place(f"{_LAYER}.self_attn.o_proj"),
    "resid1": _Place(f"{_LAYER}.post_attention_layernorm", is_input=True),
    "norm2": _Place(f"{_LAYER}.post_attention_layernorm"),
    "gate": _Place(f"{_LAYER}.mlp.gate_proj"),
    "up": _Place(f"{_LAYER}.mlp.up_proj"),
    "act": _Place(f"{_LAYER}.mlp.down_proj", is_input=True),
    "down": _Place(f"{_LAYER}.mlp.down_proj"),
    "resid2": _Place(_LAYER),
    "norm": _Place("model.norm"),
    "logits": _Place("lm_head"),
}
# Each family's modeling file has one of its own; attention finds it by name in every call.
_ROTATION = "apply_rotary_pos_emb"


def rows_of(tensor: "Tensor") -> np.ndarray:
    """A float32 copy [tokens, width] of [1, tokens, width] or [1, heads, tokens, head_dim]."""
    return np.array(_by_token(tensor).flatten(1).float().numpy())


def _by_token(tensor: "Tensor") -> "Tensor":
    """A view with the tokens first."""
    return tensor[0] if tensor.ndim == 3 else tensor[0].transpose(0, 1)


def _overwrite(tensor: "Tensor", rows: np.ndarray) -> None:
    view = _by_token(tensor)
    assert rows.shape == view.flatten(1).shape, f"{rows.shape} in place of {tuple(view.shape)}"
    view.copy_(view.new_tensor(np.ascontiguousarray(rows)).reshape(view.shape))


def _hooked(model: "PreTrainedModel", tap: Tap, show: "Show") -> "RemovableHandle":
    place = _PLACES[tap.point]
    module = model.get_submodule(place.module.format(layer=tap.layer))

    def taken(_module: "nn.Module", inputs: "tuple[Tensor, ...]") -> None:
        show(tap, inputs[0])

    def given(_module: "nn.Module", _inputs: "tuple[Tensor, ...]", output: "Tensor") -> None:
        show(tap, output)

    if place.is_input:
        return module.register_forward_pre_hook(taken)
    return module.register_forward_hook(given)


@contextmanager
def _shown_rotations(model: "PreTrainedModel", show: "Show") -> Iterator[None]:
    """`q_rot` and `k_rot`; the modeling file's function is replaced, layer by layer."""
    layers = range(model.config.num_hidden_layers)
    attentions = [model.get_submodule(f"model.layers.{layer}.self_attn") for layer in layers]
    modeling = sys.modules[type(attentions[0]).__module__]
    rotate: Rotation = getattr(modeling, _ROTATION)

    def announce(layer: int) -> Callable[..., None]:
        def enter(_module: "nn.Module", _inputs: object, named: "Mapping[str, object]") -> None:
            embeddings = named["position_embeddings"]
            assert isinstance(embeddings, tuple)
            shown = _shown_rotation(rotate, layer, cos=embeddings[0], show=show)
            setattr(modeling, _ROTATION, shown)

        return enter

    with ExitStack() as stack:
        stack.callback(setattr, modeling, _ROTATION, rotate)
        for layer, attention in enumerate(attentions):
            hook = attention.register_forward_pre_hook(announce(layer), with_kwargs=True)
            stack.enter_context(hook)
        yield


def _shown_rotation(rotate: "Rotation", layer: int, *, cos: "Tensor", show: "Show") -> "Rotation":
    def rotated(
        query: "Tensor", key: "Tensor", its_cos: "Tensor", sin: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        found = rotate(query, key, its_cos, sin)
        # All models of the family share the function, and an observer may run another in between.
        if its_cos is cos:
            show(Tap(layer, "q_rot"), found[0])
            show(Tap(layer, "k_rot"), found[1])
        return found

    return rotated


@contextmanager
def _shown_cache(cache: "DynamicCache", show: "Show") -> Iterator[None]:
    """`keys` and `values`: the new rows of what the cache gives attention, its own storage."""
    update = cache.update

    def updated(key: "Tensor", value: "Tensor", layer: int) -> "tuple[Tensor, Tensor]":
        keys, values = update(key, value, layer)
        count = key.shape[-2]
        show(Tap(layer, "keys"), keys[..., -count:, :])
        show(Tap(layer, "values"), values[..., -count:, :])
        return keys, values

    vars(cache)["update"] = updated
    try:
        yield
    finally:
        del vars(cache)["update"]


@contextmanager
def observed(
    model: "PreTrainedModel", cache: "DynamicCache", *, observer: Observer
) -> Iterator[None]:
    """Show `observer` the taps of the one call inside, in the order of computation.

    Model, cache and modeling file are as before afterwards, whatever was raised inside.

    Args:
        model: A qwen2, qwen3 or llama with eager attention, called under `no_grad`.
        cache: The one that the call is given.
        observer: Sees them, and may put others in their place.
    """

    def show(tap: Tap, tensor: "Tensor") -> None:
        if tap.point not in observer.points:
            return
        rows = observer.see(tap, rows_of(tensor))
        if rows is not None:
            _overwrite(tensor, rows)

    at_modules = observer.points & frozenset(_PLACES)
    with ExitStack() as stack:
        for tap in taps_of(model.config.num_hidden_layers, at_modules):
            stack.enter_context(_hooked(model, tap, show))
        stack.enter_context(_shown_rotations(model, show))
        stack.enter_context(_shown_cache(cache, show))
        yield
