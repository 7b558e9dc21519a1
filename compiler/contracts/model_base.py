"""What a model family is: how a checkpoint's configuration becomes a module that can be traced."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from compiler.contracts.errors import CompilerError

if TYPE_CHECKING:
    import numpy as np
    import torch


class ModelFamily(ABC):
    """One family of checkpoints, by `model_type`. Stateless; `config` is config.json, parsed."""

    model_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def violations(self, config: Mapping[str, object]) -> list[CompilerError]:
        """What of this configuration is not supported, or contradicts itself, each by its key."""

    @abstractmethod
    def tensors(self, config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that such a checkpoint holds (a tied head is left out)."""

    @abstractmethod
    def layer_kinds(self, config: Mapping[str, object]) -> tuple[str, ...]:
        """The kind of each layer, in order; layers of one kind have one graph."""

    @abstractmethod
    def module(self, config: Mapping[str, object], kinds: Sequence[str]) -> "torch.nn.Module":
        """The model with one layer for each of `kinds`, parameters under their Hugging Face names.

        Its forward takes (input_ids [1, T], attention_mask [1, past + T], position_ids [1, T],
        past_key_values: a (key, value) pair a layer, each [1, kv_heads, past, head_dim]) and
        returns (logits [1, T, vocabulary], [(key, value), ...] with past + T positions).
        """

    @abstractmethod
    def buffers(self, config: Mapping[str, object]) -> dict[str, "np.ndarray"]:
        """Values that no checkpoint holds (the rotary's inverse frequencies), by module path."""

    @abstractmethod
    def cache_shape(self, config: Mapping[str, object]) -> tuple[int, int]:
        """(kv_heads, head_dim) of a layer's cache."""

    @abstractmethod
    def probe_config(
        self,
        config: Mapping[str, object],
        *,
        window: int,
        context: int,
        model_window: int,
        model_context: int,
        ways: int = 1,
    ) -> dict[str, object]:
        """The configuration of the probe: the same layers, kinds and names at small widths.

        Passes must do to the probe what they do to the model, so whatever decides a graph's form
        (grouped or single key heads, a vocabulary that is no multiple of 16) is as in the original.
        Lengths that positions may pass (a sliding window, what the rotary was trained at) lie on
        the same side of the probe's window and context as they did of the model's.

        Args:
            config: A configuration without violations.
            window: The probe's prefill window, in place of the model's.
            context: The probe's context.
            model_window: The model's prefill window.
            model_context: The model's context; its window where there is no decode.
            ways: Ranks that both are divided between; what they divide of the model they must
                divide of the probe, and repeat its key heads as often.
        """
