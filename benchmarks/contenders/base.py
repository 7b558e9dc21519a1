"""What every runtime that takes part can do. Nothing heavy is imported here."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Job:
    """One model for one contender.

    Attributes:
        checkpoint: A Hugging Face folder.
        folder: Where it keeps what it makes; its own.
        dtype: One of the contender's `dtypes`.
        threads: To compute with.
        window: Tokens of the longest prompt.
        context: Tokens that the cache must hold.
    """

    checkpoint: Path
    folder: Path
    dtype: str
    threads: int
    window: int
    context: int


class Contender(ABC):
    """One runtime on one model. `make` runs in a process of its own, the rest in another.

    Attributes:
        modules: What must be installed.
        install: How to get it.
        dtypes: What it can be built in -> the class of weights in which it is compared.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""
    dtypes: ClassVar[Mapping[str, str]]

    def __init__(self, job: Job) -> None:
        self.job = job

    @classmethod
    def lacks(cls) -> str:
        """What is not installed; empty where all is there."""
        missing = [name for name in cls.modules if importlib.util.find_spec(name) is None]
        return ", ".join(missing)

    @abstractmethod
    def make(self) -> None:
        """Convert or build what `load` reads; what is there already is kept."""

    @abstractmethod
    def load(self) -> None:
        """Get ready to run."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int]) -> int:
        """Read a prompt from an empty cache; the most probable next token."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Append one token; the most probable next one."""
