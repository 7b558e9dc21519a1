"""Outputs of one target in one .npz file: written on one machine, compared on another.

    format                              "graphlower-outputs-1"
    target, model                       who gave them; sha256 of the checkpoint
    window                              tokens of a prefill call
    prompt0/tokens                      int64 [n], what was read
    prompt0/fed                         int64 [steps - 1], what was fed after it
    prompt0/logits                      [steps, vocabulary], before each of them
    prompt0/prefill0/model.layers.3/q   [tokens, width], a tap of one call; any number, or none

Any tool can write one: `numpy.savez` with these names; numbers are float32. Every name is one of
these: one that is misspelt would be an array that nobody compares. Arrays are read one at a time.
"""

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compiler.atomic_file import partial_file
from compiler.contracts.errors import RunError
from compiler.contracts.taps import FIRST_TAPS, LAST_TAPS, LAYER_TAPS, Tap
from compiler.npz_file import NpzFile
from compiler.tap_store import TapFolder

FORMAT = "graphlower-outputs-1"
# Zip files carry dates; equal outputs are to give equal bytes.
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_HINT = "write it with: python -m compiler compare model.yaml --targets NAME --save outputs.npz"
_FACTS = ("format", "target", "model", "window")
_PROMPT = re.compile(r"prompt(0|[1-9][0-9]{0,5})/(?:tokens|fed|logits)")
_TAP = re.compile(r"prompt(?:0|[1-9][0-9]{0,5})/(?:prefill|step)[0-9]{1,6}/(.+)")


@dataclass(frozen=True)
class SavedPrompt:
    """One prompt and what the target said of it.

    Attributes:
        tokens: What was read.
        fed: What was fed after it, one token a step.
        logits: [len(fed) + 1, vocabulary]; None in a file that holds inputs alone.
    """

    tokens: tuple[int, ...]
    fed: tuple[int, ...] = ()
    logits: np.ndarray | None = None


@dataclass(frozen=True)
class SavedOutputs:
    """A file of saved outputs; a `TapSource`.

    Attributes:
        target: Who gave them.
        model: sha256 of the checkpoint; empty where the writer did not say.
        window: Tokens of a prefill call.
        prompts: In order.
        path: The file.
        tap_names: The taps that it holds, as `prompt0/prefill0/model.layers.3/q`.
    """

    target: str
    model: str
    window: int
    prompts: tuple[SavedPrompt, ...]
    path: Path
    tap_names: frozenset[str] = field(default=frozenset(), repr=False)
    _file: NpzFile | None = field(default=None, repr=False)

    def get(self, call: str, tap: Tap) -> np.ndarray | None:
        """Rows [tokens, width] of one call; None where they were not kept.

        Raises:
            RunError: The array is damaged, or of another kind.
        """
        name = f"{call}/{tap}"
        if self._file is None or name not in self.tap_names:
            return None
        header = self._file.header(name)
        if len(header.shape) != 2 or header.dtype != np.float32:
            raise self._file.error(f"{name} is {header}, expected float32 [tokens, width]")
        return self._file.read(name)


def write_outputs(path: Path, outputs: SavedOutputs, taps: TapFolder | None) -> None:
    """Write a file, in one step.

    Args:
        path: Where; replaced if it is there.
        outputs: What to write; its own `path` is not read.
        taps: Taps to put beside the logits.

    Raises:
        RunError: It cannot be written.
    """
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "target": np.array(outputs.target),
        "model": np.array(outputs.model),
        "window": np.array(outputs.window),
    }
    for index, prompt in enumerate(outputs.prompts):
        arrays[f"prompt{index}/tokens"] = np.array(prompt.tokens, np.int64)
        arrays[f"prompt{index}/fed"] = np.array(prompt.fed, np.int64)
        if prompt.logits is not None:
            arrays[f"prompt{index}/logits"] = prompt.logits
    with partial_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for member, array in arrays.items():
            _add(archive, member, array)
        for member, file in taps.members() if taps is not None else ():
            _add(archive, member, np.load(file))


def _add(archive: zipfile.ZipFile, member: str, array: np.ndarray) -> None:
    entry = zipfile.ZipInfo(f"{member}.npy", date_time=_NO_DATE)
    with archive.open(entry, "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def read_outputs(path: Path, *, vocabulary: int, context: int) -> SavedOutputs:
    """Read a file, and check everything but the numbers.

    Args:
        path: The file.
        vocabulary: Token ids lie below it, and logits are as many.
        context: What a prompt and all that is fed after it must fit.

    Raises:
        RunError: It cannot be read, or is not such a file; names the member that is wrong.
    """
    file = NpzFile(path, hint=_HINT)
    if _word(file, "format") != FORMAT:
        raise file.error(f"is no file of format {FORMAT}")
    taps = frozenset(name for name in file.names if _is_tap(name))
    numbers = [int(found[1]) for name in file.names if (found := _PROMPT.fullmatch(name))]
    for name in file.names:
        if name not in taps and name not in _FACTS and not _PROMPT.fullmatch(name):
            raise file.error(f"holds {name!r}, a name that means nothing here")
    if not numbers:
        raise file.error("holds no prompt")
    return SavedOutputs(
        target=_word(file, "target"),
        model=_word(file, "model"),
        window=_window(file),
        prompts=tuple(
            _prompt(file, number, vocabulary=vocabulary, context=context)
            for number in range(max(numbers) + 1)
        ),
        path=path,
        tap_names=taps,
        _file=file,
    )


def _is_tap(name: str) -> bool:
    found = _TAP.fullmatch(name)
    if found is None:
        return False
    tap = Tap.parse(found[1])
    points = (*FIRST_TAPS, *LAST_TAPS) if tap.layer is None else LAYER_TAPS
    return tap.point in points and str(tap) == found[1]


def _prompt(file: NpzFile, number: int, *, vocabulary: int, context: int) -> SavedPrompt:
    tokens, fed, logits = (f"prompt{number}/{part}" for part in ("tokens", "fed", "logits"))
    if tokens not in file.names:
        raise file.error(f"{tokens} is missing")
    read = _tokens(file, tokens, vocabulary=vocabulary, room=context)
    if not read:
        raise file.error(f"{tokens} is empty")
    if logits not in file.names:
        return SavedPrompt(read)
    room = context - len(read)
    after = _tokens(file, fed, vocabulary=vocabulary, room=room) if fed in file.names else ()
    header = file.header(logits)
    expected = (len(after) + 1, vocabulary)
    if header.shape != expected or header.dtype != np.float32:
        raise file.error(
            f"{logits} is {header}, expected float32 {list(expected)}: one row after the prompt "
            "and one after each token of fed, as many logits as the vocabulary"
        )
    return SavedPrompt(read, after, file.read(logits))


def _tokens(file: NpzFile, name: str, *, vocabulary: int, room: int) -> tuple[int, ...]:
    header = file.header(name)
    if len(header.shape) != 1 or header.dtype.kind not in "iu":
        raise file.error(f"{name} is {header}, expected integers of one axis")
    if header.shape[0] > room:
        raise RunError(
            f"{name} holds {header.shape[0]} tokens, the context has room for {room}",
            where=str(file.path),
            hint="build with a longer frontend.shape.input_ids[1], or save shorter prompts",
        )
    found = tuple(int(token) for token in file.read(name))
    wrong = next((token for token in found if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise file.error(f"{name} holds {wrong}, outside the vocabulary of {vocabulary}")
    return found


def _word(file: NpzFile, name: str) -> str:
    """Empty where it is missing, or no text."""
    if name not in file.names:
        return ""
    header = file.header(name)
    is_word = header.shape in ((), (1,)) and header.dtype.kind == "U"
    return str(file.read(name).item()) if is_word else ""


def _window(file: NpzFile) -> int:
    """0 where the file does not say."""
    if "window" not in file.names:
        return 0
    header = file.header("window")
    if header.shape not in ((), (1,)) or header.dtype.kind not in "iu":
        raise file.error(f"window is {header}, expected one integer")
    return int(file.read("window").item())
