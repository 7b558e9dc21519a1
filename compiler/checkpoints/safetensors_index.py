"""The tensors of a Hugging Face folder: one safetensors file, or an index of shards.

`model.safetensors` is taken where it exists, as transformers does; else
`model.safetensors.index.json`, whose every claim is held against the shards. Files that would be
unpickled are refused, never opened.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from compiler.checkpoints.json_source import read_json_object
from compiler.checkpoints.safetensors_header import tensors_in
from compiler.contracts.errors import CheckpointError, CompilerError, raise_all
from compiler.contracts.weights import StoredTensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")


def tensors_of_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's checkpoint, by its Hugging Face name; no tensor data is read.

    Raises:
        CheckpointError: There are no safetensors, or a file or the index is damaged.
        OSError: A file cannot be read.
    """
    if (folder / SINGLE_FILE).is_file():
        return tensors_in(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _tensors_of_shards(folder)
    raise _no_weights(folder)


def pickled_checkpoint(path: Path, folder: Path) -> CheckpointError:
    """The refusal of a file that only unpickling could read, with the way to convert it."""
    convert = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"source, target = {str(folder)!r}, {f'{folder}-safetensors'!r}; "
        "M.from_pretrained(source, dtype='auto').save_pretrained(target); "
        "T.from_pretrained(source).save_pretrained(target)"
    )
    return CheckpointError(
        f"{path.name} is a pickled or foreign checkpoint, which is never loaded: "
        "unpickling runs whatever code the file holds",
        where=str(path),
        hint="if you trust it, convert it once to safetensors: "
        f"python -c {shlex.quote(convert)}; then name the folder {folder}-safetensors",
        code="pickled-checkpoint",
    )


def _no_weights(folder: Path) -> CheckpointError:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.suffix.lower() in PICKLED_SUFFIXES:
            return pickled_checkpoint(path, folder)
    hint = "name a folder that holds the model's safetensors, or a .gguf file"
    models = [path for path in files if path.suffix.lower() == ".gguf"]
    if models:
        hint = f"name the GGUF file itself: {models[0]}"
    return CheckpointError(
        f"the folder holds neither {SINGLE_FILE} nor {INDEX_FILE}",
        where=str(folder),
        hint=hint,
        code="no-weights",
    )


def _tensors_of_shards(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    placed = _weight_map(index)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name in sorted(set(placed.values())):
        if not (folder / name).is_file():
            tensor = min(tensor for tensor, shard in placed.items() if shard == name)
            raise CheckpointError(
                f"the shard {name} is missing; tensor '{tensor}' should be in it",
                where=str(index),
                hint="download or copy the missing file",
                code="missing-shard",
            )
        shards[name] = tensors_in(folder / name)
    raise_all(_disagreements(folder, placed, shards))
    return {tensor: shards[shard][tensor] for tensor, shard in placed.items()}


def _weight_map(index: Path) -> dict[str, str]:
    declared = read_json_object(index).get("weight_map")
    if not isinstance(declared, dict) or not declared:
        raise CheckpointError(
            "the index has no 'weight_map'",
            where=str(index),
            hint="an index maps each tensor to the name of its shard",
            code="damaged-index",
        )
    entries: Mapping[str, object] = declared
    placed: dict[str, str] = {}
    for tensor, shard in entries.items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise CheckpointError(
                f"tensor '{tensor}' is placed in {shard!r}, which is no file of the folder",
                where=str(index),
                hint="a shard is named relative to the index and lies beside or below it",
                code="shard-path",
            )
        placed[tensor] = shard
    return placed


def _is_inside(shard: str) -> bool:
    """By its spelling alone: the Hub's own cache links shards to files elsewhere."""
    path = PurePosixPath(shard)
    has_odd_characters = "\\" in shard or "\0" in shard
    return bool(shard) and not (path.is_absolute() or ".." in path.parts or has_odd_characters)


def _disagreements(
    folder: Path, placed: Mapping[str, str], shards: Mapping[str, Mapping[str, StoredTensor]]
) -> list[CompilerError]:
    errors: list[CompilerError] = [
        CheckpointError(
            f"tensor '{tensor}' is not in the shard that the index names",
            where=str(folder / shard),
            hint="the index and the shards come from different downloads: download both again",
            code="missing-tensor",
        )
        for tensor, shard in placed.items()
        if tensor not in shards[shard]
    ]
    for shard, tensors in shards.items():
        for tensor in tensors:
            home = placed.get(tensor)
            if home == shard:
                continue
            problem = (
                "is not in the index"
                if home is None
                else f"is a second one; the index names {home}"
            )
            errors.append(
                CheckpointError(
                    f"tensor '{tensor}' {problem}",
                    where=str(folder / shard),
                    hint="the index and the shards come from different downloads: "
                    "download both again",
                    code="extra-tensor",
                )
            )
    return errors
