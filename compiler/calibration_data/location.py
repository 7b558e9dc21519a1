"""`dataset.type`, `name` and `path` -> the file that is meant, and how it is read."""

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.calibration_data.exam_csv import texts_of_ceval
from compiler.calibration_data.file_kind import unreadable
from compiler.calibration_data.json_array import texts_of_alpaca
from compiler.calibration_data.json_lines import texts_of_json_lines
from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.plain_text import texts_of_file
from compiler.contracts.errors import ConfigError, DatasetError

# Of a folder with none of the wanted, or with several.
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class DataForm:
    """One kind of file.

    Attributes:
        read: Its documents, one after another.
        suffixes: What a file in a folder ends with to be meant.
        is_joined: Whether documents are joined before windows are cut; a window of its own for each
            document otherwise.
    """

    read: Callable[[Path, ReadLimits], Generator[str, None, None]]
    suffixes: tuple[str, ...] = ()
    is_joined: bool = True


_DATASETS: Mapping[str, DataForm] = {
    "c4": DataForm(
        texts_of_json_lines, (".json.gz", ".jsonl.gz", ".json", ".jsonl"), is_joined=False
    ),
    "ceval": DataForm(texts_of_ceval, (".zip",)),
    "alpaca": DataForm(texts_of_alpaca, (".json", ".json.gz")),
}
_FILES: Mapping[str, DataForm] = {
    "text": DataForm(texts_of_file),
    "jsonl": DataForm(texts_of_json_lines, is_joined=False),
}


def form_of(kind: str, name: str | None) -> DataForm:
    """How `dataset.type` and `dataset.name` say that a file is read.

    Raises:
        ConfigError: They do not say it.
    """
    if kind in _FILES and name is not None:
        raise ConfigError(
            f"`name: {name}` is for `type: huggingface`, which is {kind}",
            where="dataset.name",
            hint=f"leave it out, or leave out `type: {kind}`",
            code="bad-value",
        )
    if kind in _FILES:
        return _FILES[kind]
    if name is not None:
        return _DATASETS[name]
    raise ConfigError(
        "dataset.path is given, and dataset.name does not say what it holds",
        where="dataset.name",
        hint=f"write one of {', '.join(_DATASETS)}; or `type: text` or `type: jsonl` for a file",
        code="missing-key",
    )


def located(written: str, *, base: Path, form: DataForm) -> Path:
    """The file that `dataset.path` names, or the one of its form in the folder that it names.

    Args:
        written: As in the YAML.
        base: The folder that it is relative to.
        form: What is looked for in a folder.

    Raises:
        DatasetError: The folder has none, or several, or cannot be listed.
    """
    path = base / os.path.expanduser(written)
    if not form.suffixes or not os.path.isdir(path):
        return path
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    except OSError as e:
        raise unreadable(e, place=str(path)) from e
    found = [name for name in names if name.endswith(form.suffixes) and name[0] != "."]
    if len(found) == 1:
        return path / found[0]
    wanted = " or ".join(form.suffixes)
    if found:
        message = f"holds {len(found)} files that end with {wanted}: {_listed(found)}"
        hint = f"name one: `path: {Path(written) / found[0]}`"
    else:
        message = f"holds no file that ends with {wanted} (there are: {_listed(names) or 'none'})"
        hint = "name the file, or the folder that it lies in"
    raise DatasetError(message, where=str(path), hint=hint, code="which-file")


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
    return ", ".join([*names[:_NAMES_SHOWN], *more])
