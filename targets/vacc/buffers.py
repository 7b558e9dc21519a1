"""Buffers on the emulated chip: of a fixed capacity, empty until something is put in them."""

from collections.abc import Mapping
from math import prod

import numpy as np

from compiler.contracts.errors import TargetError
from targets.vacc.tile_program import Tensor

DTYPES: Mapping[str, np.dtype] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "i8": np.dtype(np.int8),
    "i64": np.dtype(np.int64),
}


class Buffer:
    """Memory on chip of a fixed capacity; `None` until something is put in it."""

    def __init__(self, declared: Tensor) -> None:
        self.name = declared.name
        self.flat = np.empty(prod(declared.shape), DTYPES[declared.dtype])
        self._wide_flat = self.flat if declared.dtype == "f32" else np.empty(0, np.float32)
        self.content: np.ndarray | None = None
        self._wide: np.ndarray | None = None

    def empty(self) -> None:
        """Forget what was put in."""
        self.content = self._wide = None

    def put(self, values: np.ndarray) -> None:
        """Copy values in, rounding to the buffer's dtype.

        Raises:
            TargetError: They do not fit.
        """
        if values.size > self.flat.size:
            raise TargetError(
                f"buffer {self.name} holds {self.flat.size} entries, {values.size} were put in"
            )
        self.content = self.flat[: values.size].reshape(values.shape)
        self._wide = None
        if self.content is not values:
            np.copyto(self.content, values, casting="unsafe")

    def read(self) -> np.ndarray:
        """What was put in.

        Raises:
            TargetError: Nothing was.
        """
        if self.content is None:
            raise TargetError(f"buffer {self.name} is read before anything was loaded into it")
        return self.content

    def wide(self) -> np.ndarray:
        """The same as float32, converted once."""
        content = self.read()
        if content.dtype == np.float32:
            return content
        if self._wide is None:
            if not self._wide_flat.size:
                self._wide_flat = np.empty(self.flat.size, np.float32)
            self._wide = self._wide_flat[: content.size].reshape(content.shape)
            np.copyto(self._wide, content)
        return self._wide
