"""Tensors of a run, one at a time: on disk between two targets, or in a file from elsewhere.

    FOLDER/prompt0/prefill0/model.layers.3/q.npy

Holding two models against each other by tap then costs the memory of one tap.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from compiler.contracts.taps import Tap


class TapSource(Protocol):
    """Where the taps of a run can be read."""

    def get(self, call: str, tap: Tap) -> np.ndarray | None:
        """Rows [tokens, width] of one call; None where they were not kept."""
        ...


class TapFolder:
    """Taps of one run as .npy files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, call: str, tap: Tap, rows: np.ndarray) -> None:
        """Keep rows; those of one call that come in parts are joined."""
        file = self._file(call, tap)
        if file.is_file():
            rows = np.concatenate([np.load(file), rows])
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, rows)

    def get(self, call: str, tap: Tap) -> np.ndarray | None:
        """Rows [tokens, width] of one call; None where they were not kept."""
        file = self._file(call, tap)
        return np.load(file) if file.is_file() else None

    def members(self) -> Iterator[tuple[str, Path]]:
        """`prompt0/prefill0/model.layers.3/q` and its file, sorted."""
        for file in sorted(self._folder.rglob("*.npy")):
            yield file.relative_to(self._folder).with_suffix("").as_posix(), file

    def _file(self, call: str, tap: Tap) -> Path:
        return self._folder / call / f"{tap}.npy"
