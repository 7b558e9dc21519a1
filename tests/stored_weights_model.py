"""transformers with the weights that an accelerator's bundle stores, in float32 arithmetic."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

# Float16 has 11 bits; a layer rounds some ten values in a row, each of the order of the logits.
LIMIT = 8 * 2.0**-11
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def torch_model(folder: Path, *, is_int8: bool = False) -> torch.nn.Module:
    """Matrices rounded to float16, or those of layers to int8 codes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if is_int8 and name.split(".")[-2] in _LINEARS and name.endswith("weight"):
            scale = parameter.data.abs().amax(1, keepdim=True) / 127
            parameter.data = (parameter.data / scale).round() * scale
        elif parameter.dim() == 2:
            parameter.data = parameter.data.half().float()
    return model


def torch_logits(model: torch.nn.Module, tokens: Sequence[int]) -> np.ndarray:
    """float32 [len(tokens), vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].numpy()
