"""`torch`: transformers itself, on the checkpoint, in float32: what all else is held against."""

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError, TargetError
from compiler.contracts.program import Program
from compiler.contracts.target_base import Probe, Runner, Target, TargetOptions
from compiler.contracts.weights import CheckpointRef


class TorchTarget(Target):
    """Runs a checkpoint as transformers does; builds nothing."""

    name: ClassVar = "torch"
    opens: ClassVar = "checkpoint"

    def probe(self) -> Probe:
        """What it needs: torch and transformers."""
        missing = tuple(
            f"{name} is not installed: pip install {name}"
            for name in ("torch", "transformers")
            if importlib.util.find_spec(name) is None
        )
        return Probe(can_build=False, can_run=not missing, missing=missing)

    def constraints(
        self, options: TargetOptions, config: Mapping[str, object]
    ) -> list[CompilerError]:
        """It builds no bundle, whatever the options."""
        del options, config
        return [
            TargetError(
                f"target '{self.name}' runs checkpoints, it does not build bundles",
                hint="compare with it: python -m compiler compare model.yaml --targets torch,llvm",
            )
        ]

    def open(
        self, model: CheckpointRef | Program | Bundle, *, threads: int | None = None
    ) -> Runner:
        """Load the checkpoint in float32 with eager attention.

        Raises:
            TargetError: Given something else than a checkpoint, or one that transformers would read
                otherwise than we do.
        """
        if not isinstance(model, CheckpointRef):
            raise TargetError(f"target '{self.name}' opens checkpoints, not {type(model).__name__}")
        if model.config.get("use_logn_attn"):
            raise TargetError(
                "transformers has no LogN attention scaling",
                where=f"{model.path / 'config.json'}: use_logn_attn",
                hint="it can be no reference for this model; compare two other targets",
            )
        return TorchRunner(model, threads=threads)


class TorchRunner(Runner):
    """One transformers model and its dynamic cache."""

    def __init__(self, checkpoint: CheckpointRef, *, threads: int | None = None) -> None:
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
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
        ).eval()
        self._decoder = self._model.get_decoder()
        self._rotary = copy.deepcopy(self._decoder.rotary_emb)
        # Not of the configuration: a sliding layer's would drop what `rewind` goes back to.
        self._cache = DynamicCache()
        config = self._model.config
        self.vocabulary = int(config.vocab_size)
        stretched = float(config.rope_parameters.get("factor") or 1.0)
        self.context = int(config.max_position_embeddings * max(stretched, 1.0))

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """One forward over the new tokens; the last position's logits."""
        self.check_tokens(tokens)
        with self._torch.no_grad():
            ids = self._torch.tensor([list(tokens)], dtype=self._torch.int64)
            output = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.length += len(tokens)
        return output.logits[0, -1].numpy().copy()

    def rewind(self, length: int) -> None:
        """Cut the cache; transformers' `crop` takes minus the number of positions to remove."""
        removed = self.length - length
        super().rewind(length)
        if removed:
            self._cache.crop(-removed)
        # Of type `dynamic` it would keep the frequencies of the longest sequence so far.
        self._decoder.rotary_emb = copy.deepcopy(self._rotary)
