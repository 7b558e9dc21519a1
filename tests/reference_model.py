"""transformers as the reference: logits of every position in float32, independent of our code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging as transformers_logging


def load_reference(folder: Path, *, gguf_file: str | None = None) -> PreTrainedModel:
    """The model in float32, weights as they are stored; transformers itself reads `gguf_file`."""
    transformers_logging.disable_progress_bar()
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **options
    ).eval()


def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray:
    """float32 [len(tokens), vocabulary] of one pass without a cache."""
    with torch.no_grad():
        output = model(torch.tensor([list(tokens)]), use_cache=False)
    return output.logits[0].float().numpy()


def reference_greedy(
    model: PreTrainedModel, prompt: Sequence[int], steps: int
) -> tuple[list[int], np.ndarray]:
    """`steps` greedy tokens with transformers' own cache, and the logits of each, float32."""
    cache = DynamicCache(config=model.config)
    given, rows, tokens = list(prompt), [], []
    while len(tokens) < steps:
        with torch.no_grad():
            output = model(torch.tensor([given]), past_key_values=cache, use_cache=True)
        rows.append(output.logits[0, -1].float().numpy())
        tokens.append(int(rows[-1].argmax()))
        given = tokens[-1:]
    return tokens, np.stack(rows)


def reference_chunks(model: PreTrainedModel, chunks: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """float32 [len(chunk), vocabulary] of each chunk, one after another on transformers' cache.

    Where the rotary depends on the length, keys keep the frequencies of the chunk that they came
    in, so what the chunks are shows in the numbers.
    """
    cache = DynamicCache(config=model.config)
    logits = []
    for chunk in chunks:
        with torch.no_grad():
            output = model(torch.tensor([list(chunk)]), past_key_values=cache, use_cache=True)
        logits.append(output.logits[0].float().numpy())
    return logits
