"""Faults that an emulated device has on purpose, so that comparing can be seen to find them.

    GRAPHLOWER_VACC_DRIVER=emulator:missing@model.layers.1.mlp.act

`KIND@MODULE`, several with commas between them; a module is a glob over the names of `run` lines.

    saturate       what is stored is clipped to the largest magnitude / 4 of what should be
    late-write     what is stored appears one call later: a state, one token late
    missing        the kernel is not run; its result is what lay there before
    wrong-layout   what the kernel reads first, its rows are taken in the other order of axes
    swapped-ranks  what is stored is the next rank's; nothing changes where there is one
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import numpy as np

from compiler.contracts.errors import ConfigError
from targets.vacc.emulator import EmulatedPartition, Emulator
from targets.vacc.tile_program import Run

KINDS = ("saturate", "late-write", "missing", "wrong-layout", "swapped-ranks")
_SHARE = 4


@dataclass(frozen=True)
class Fault:
    """One kind, at the modules that a glob selects."""

    kind: str
    modules: str


def read_faults(text: str) -> tuple[Fault, ...]:
    """`KIND@MODULE,KIND@MODULE`.

    Raises:
        ConfigError: There is no such fault.
    """
    faults: list[Fault] = []
    for part in filter(None, text.split(",")):
        kind, at, modules = part.partition("@")
        if kind not in KINDS or not at or not modules:
            raise ConfigError(
                f"'{part}' is no fault of the emulator",
                hint=f"write KIND@MODULE; kinds: {', '.join(KINDS)}",
            )
        faults.append(Fault(kind, modules))
    return tuple(faults)


def emulator(options: str) -> Emulator:
    """The emulator, faulty where options name faults."""
    faults = read_faults(options)
    return Emulator(partial(FaultyPartition, faults=faults)) if faults else Emulator()


class FaultyPartition(EmulatedPartition):
    """A partition that does not do all that its text says."""

    def __init__(self, tiles: str, *, where: str = "tiles", faults: Sequence[Fault]) -> None:
        super().__init__(tiles, where=where)
        self._faults = tuple(faults)
        # Result -> the entries that the last call should have changed, and what to.
        self._owed: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def execute(self, run: Run, memory: Mapping[str, np.ndarray]) -> None:
        """As the fault has it."""
        if self._has("missing", run):
            return
        if not self._has("late-write", run):
            super().execute(run, memory)
            return
        before = {name: memory[name].copy() for name in run.results}
        super().execute(run, memory)
        for name, kept in before.items():
            key, found = f"{run.module}:{name}", memory[name].copy()
            memory[name][...] = kept
            if key in self._owed:
                entries, values = self._owed[key]
                memory[name][entries] = values[entries]
            self._owed[key] = (found != kept, found)

    def stored(self, run: Run, values: np.ndarray) -> np.ndarray:
        """Clipped, where it saturates; another rank's, where those are swapped."""
        if self._has("swapped-ranks", run) and self._collectives is not None:
            line = self._collectives
            shares = np.split(line.all_gather(values), line.ways, axis=-1)
            return shares[(line.rank + 1) % line.ways]
        if not self._has("saturate", run):
            return values
        limit = np.abs(values).max(initial=0) / _SHARE
        return np.clip(values, -limit, limit)

    def loaded(self, run: Run, name: str, values: np.ndarray) -> np.ndarray:
        """Read by columns instead of rows, where the layout is wrong."""
        first = self._kernels[run.kernel].inputs[0].name
        if name != first or not self._has("wrong-layout", run):
            return values
        flat = values.reshape(-1, values.shape[-1])
        return flat.reshape(flat.shape[::-1]).T.reshape(values.shape)

    def _has(self, kind: str, run: Run) -> bool:
        return any(
            fault.kind == kind and fnmatchcase(run.module, fault.modules) for fault in self._faults
        )
