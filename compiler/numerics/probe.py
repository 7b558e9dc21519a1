"""The probe: the model's graphs at small widths, with random weights, on which passes are measured.

It has the real number, kinds and names of layers. Biases are not zero and norms are not one, so
that nothing that a pass may lose is neutral.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.contracts.model_base import ModelFamily
from compiler.contracts.program import ProgramSet
from compiler.contracts.weight_values import RowReader
from compiler.contracts.weights import DTYPES, CheckpointRef, StoredTensor

# Lengths of the probe's graphs: a window, and a context that three of them fill.
WINDOW, CONTEXT = 16, 48


@dataclass(frozen=True)
class ProbeModel:
    """Programs that can be run beside the real ones.

    Attributes:
        programs: By phase, as traced or imported.
        read: Rows of a checkpoint tensor of theirs.
        vocabulary: Token ids lie below it.
    """

    programs: ProgramSet
    read: RowReader
    vocabulary: int


def probe_lengths(window: int, context: int | None) -> tuple[int, int | None]:
    """(window, context) of the probe; a context as long as the window stays so."""
    if context is None:
        return WINDOW, None
    return WINDOW, WINDOW if context == window else CONTEXT


def probe_checkpoint(
    family: ModelFamily,
    checkpoint: CheckpointRef,
    *,
    window: int,
    context: int | None,
    ways: int = 1,
) -> CheckpointRef:
    """The checkpoint that the probe would be traced from; its tensors lie in no file.

    Args:
        family: Of the model.
        checkpoint: The model's.
        window: The model's prefill window.
        context: The model's context; None without decode.
        ways: Ranks that the model is divided between.
    """
    probe_window, probe_context = probe_lengths(window, context)
    config = family.probe_config(
        checkpoint.config,
        window=probe_window,
        context=probe_context or probe_window,
        model_window=window,
        model_context=context or window,
        ways=ways,
    )
    shapes = family.tensors(config)
    tensors = {
        name: StoredTensor(Path(), 0, shapes[name], tensor.dtype)
        for name, tensor in checkpoint.tensors.items()
    }
    return CheckpointRef(checkpoint.path, config, tensors, digest="probe")


def random_rows(tensors: Mapping[str, StoredTensor], *, seed: int = 0) -> RowReader:
    """A reader of random values for every tensor, the same for a name and seed in each process.

    Matrices keep the size of what they multiply (standard deviation 1 / sqrt(columns)); vectors are
    norm weights within [0.5, 1.5] or, where they are called bias, normal with deviation 0.3.
    """
    made: dict[str, np.ndarray] = {}

    def read(name: str, start: int, stop: int) -> np.ndarray:
        if name not in made:
            made[name] = _random_tensor(name, tensors[name], seed)
        return made[name][start:stop]

    return read


def _random_tensor(name: str, tensor: StoredTensor, seed: int) -> np.ndarray:
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    if len(tensor.shape) > 1:
        values = random.standard_normal(tensor.shape) / np.sqrt(tensor.shape[-1])
    elif name.endswith("bias"):
        values = random.standard_normal(tensor.shape) * 0.3
    else:
        values = random.uniform(0.5, 1.5, tensor.shape)
    return values.astype(np.float32).astype(DTYPES[tensor.dtype])
