"""transformers as the reference: logits of every position in float32, independent of our code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
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
