"""`torch`: transformers itself, on the checkpoint: what all else is held against, in float32."""

import copy
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Observer
from compiler.contracts.target_base import Probe, ProgramModel, Target
from compiler.contracts.weights import CheckpointRef
from targets.torch.observing import observed, rows_of

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicLayer

# Variant -> transformers' name of the dtype; the empty one is the plain target.
_DTYPES: Mapping[str, str] = {"": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Bytes of logits that one forward of `read_rows` gives.
_READ_BYTES = 64 << 20


class TorchTarget(Target):
    """Runs a checkpoint as transformers does; builds nothing."""

    name: ClassVar = "torch"
    opens: ClassVar = "checkpoint"
    variants: ClassVar = tuple(variant for variant in _DTYPES if variant)

    def probe(self) -> Probe:
        """What it needs: torch and transformers."""
        missing = tuple(
            f"{name} is not installed: pip install {name}"
            for name in ("torch", "transformers")
            if importlib.util.find_spec(name) is None
        )
        return Probe(can_build=False, can_run=not missing, missing=missing)

    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        """Load the checkpoint with eager attention, in float32 or in the variant's dtype.

        Raises:
            TargetError: Given something else than a checkpoint, one that transformers would read
                otherwise than we do, or an unknown variant.
        """
        if variant not in _DTYPES:
            raise TargetError(
                f"target '{self.name}' has no variant '{variant}'",
                hint=f"it has {', '.join(self.variants)}, and float32 without a variant",
            )
        if not isinstance(model, CheckpointRef):
            raise TargetError(f"target '{self.name}' opens checkpoints, not {type(model).__name__}")
        if model.config.get("use_logn_attn"):
            raise TargetError(
                "transformers has no LogN attention scaling",
                where=f"{model.path / 'config.json'}: use_logn_attn",
                hint="it can be no reference for this model; compare two other targets",
            )
        return TorchRunner(model, dtype=_DTYPES[variant], threads=threads)


class TorchRunner(Runner):
    """One transformers model and its dynamic cache."""

    def __init__(
        self, checkpoint: CheckpointRef, *, dtype: str, threads: int | None = None
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.utils import logging as transformers_logging

        # Its progress bars go to standard error, among our own.
        transformers_logging.disable_progress_bar()
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
        ).eval()
        self._decoder = self._model.get_decoder()
        self._rotary = copy.deepcopy(self._decoder.rotary_emb)
        # Not of the configuration: a sliding layer's would drop what `rewind` goes back to.
        self._cache = DynamicCache()
        # Its own list, which grows as layers first run; without a configuration all are of a kind.
        self._held = cast("list[DynamicLayer]", self._cache.layers)
        self._observer: Observer | None = None
        config = self._model.config
        self.vocabulary = int(config.vocab_size)
        self.layers = int(config.num_hidden_layers)
        stretched = float(config.rope_parameters.get("factor") or 1.0)
        self.context = int(config.max_position_embeddings * max(stretched, 1.0))

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """One forward over the new tokens; the last position's logits."""
        self.check_tokens(tokens)
        return self._forward(tokens, kept=1)[0]

    def read_rows(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """One forward over as many tokens as their logits leave room for."""
        self.check_tokens(tokens)
        count = max(1, _READ_BYTES // (self.vocabulary * np.dtype(np.float32).itemsize))
        for start in range(0, len(tokens), count):
            chunk = tokens[start : start + count]
            yield from self._forward(chunk, kept=len(chunk))

    def _forward(self, tokens: Sequence[int], *, kept: int) -> np.ndarray:
        """The logits of the last `kept` of the tokens."""
        ids = self._torch.tensor([list(tokens)], dtype=self._torch.int64)
        watching = (
            nullcontext()
            if self._observer is None
            else observed(self._model, self._cache, observer=self._observer)
        )
        try:
            with self._torch.no_grad(), watching:
                output = self._model(
                    ids, past_key_values=self._cache, use_cache=True, logits_to_keep=kept
                )
        except BaseException:
            # An observer may raise: the layers before it hold the new rows, those after do not.
            self.rewind(self.length)
            raise
        self.length += len(tokens)
        return rows_of(output.logits)

    def rewind(self, length: int) -> None:
        """Cut the cache; transformers' `crop` takes minus the number of positions to remove."""
        super().rewind(length)
        for held in self._held:
            held.crop(length - held.get_seq_length())
        # Of type `dynamic` it would keep the frequencies of the longest sequence so far.
        self._decoder.rotary_emb = copy.deepcopy(self._rotary)

    def observe(self, observer: Observer | None) -> None:
        """Show every tap; the model is hooked while it computes, and at no other time."""
        self._observer = observer

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Every position is held, of sliding layers too."""
        assert 0 <= start < stop <= self.length, f"rows {start} to {stop} of {self.length}"
        held = self._held[layer]
        assert held.keys is not None
        assert held.values is not None
        return rows_of(held.keys[..., start:stop, :]), rows_of(held.values[..., start:stop, :])
