"""A GGUF file as a Hugging Face folder: float32 safetensors, config.json, the tokenizer's files.

Made once, in the user's cache, under the GGUF's sha256 and the converter's version. Values are
those of `gguf.quants.dequantize`; the row order of Llama's Q and K is Hugging Face's again. Weights
are read and written in blocks of rows; the tokenizer is transformers' own reading, saved by a child
process, so that the caller never imports transformers.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np

from compiler.checkpoints.cache import cached_folder, require_space
from compiler.checkpoints.gguf_config import (
    RenamedTensor,
    config_from_gguf,
    generation_config_from_gguf,
    renamed_tensors,
)
from compiler.checkpoints.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from compiler.checkpoints.safetensors_index import SINGLE_FILE
from compiler.contracts.errors import CheckpointError
from compiler.contracts.progress import Progress
from compiler.hashing import remembered_sha256, sha256_of, user_cache

CONVERTER_VERSION = 1
# What the conversion wrote, file -> sha256, so that a damaged cache entry is noticed and made anew.
RECORD_FILE = "converted.json"

_FLOAT32_BYTES = 4
# Dequantizing takes several times this.
_BLOCK_BYTES = 16 * 1024 * 1024
# config.json, tokenizer.json (10 MB for 150000 tokens) and the header.
_SMALL_FILES_BYTES = 64_000_000
_SAVE_TOKENIZER = (
    "import sys; from transformers import AutoTokenizer as T; "
    "T.from_pretrained(sys.argv[1], gguf_file=sys.argv[2]).save_pretrained(sys.argv[3])"
)


def folder_from_gguf(
    path: Path, *, check: Callable[[Mapping[str, object]], None], progress: Progress
) -> Path:
    """The Hugging Face folder of a GGUF file, from the cache where it was converted before.

    Args:
        path: The file.
        check: Called with the config.json to be before anything is written; may raise.
        progress: Receives a note and the bytes written.

    Raises:
        CheckpointError: The file is damaged, of another architecture, or holds an unknown tensor.
        MachineLacks: There is no room for the result.
        OSError: The file cannot be read.
    """
    header = read_gguf_header(path)
    config = config_from_gguf(header)
    check(config)
    tensors = renamed_tensors(header)
    _check_kinds(header)
    entry = user_cache() / "gguf" / f"{remembered_sha256(path)}-v{CONVERTER_VERSION}"

    def convert(folder: Path) -> None:
        nbytes = _FLOAT32_BYTES * sum(prod(tensor.stored.shape) for tensor in tensors)
        require_space(folder, nbytes + _SMALL_FILES_BYTES, purpose=f"converting {path.name}")
        progress.note(f"converting {path.name} to float32 safetensors, once")
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", generation_config_from_gguf(header))
        _save_tokenizer(path, folder)
        _write_weights(path, folder / SINGLE_FILE, tensors, progress=progress)
        files = sorted(file.name for file in folder.iterdir())
        _write_json(folder / RECORD_FILE, {name: sha256_of(folder / name) for name in files})

    return cached_folder(entry, is_whole=_is_whole, make=convert, progress=progress)


def _is_whole(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
        if not isinstance(record, dict) or SINGLE_FILE not in record:
            return False
        return all(remembered_sha256(folder / name) == digest for name, digest in record.items())
    except (OSError, ValueError):
        return False


def _check_kinds(header: GgufHeader) -> None:
    """Every type must be one that the gguf package can dequantize: one block of zeros is tried."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    seen: set[int] = set()
    for tensor in header.tensors.values():
        if tensor.kind in seen:
            continue
        seen.add(tensor.kind)
        kind = GGMLQuantizationType(tensor.kind)
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as e:
            raise CheckpointError(
                f"tensor '{tensor.name}' is of the ggml type {kind.name}, which is not supported",
                where=str(header.path),
                hint="use a GGUF file with another quantization, F16 for example",
                code="tensor-dtype",
            ) from e


def _write_weights(
    source: Path, target: Path, tensors: tuple[RenamedTensor, ...], *, progress: Progress
) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    total = 0
    for tensor in tensors:
        end = total + _FLOAT32_BYTES * prod(tensor.stored.shape)
        shape = list(tensor.stored.shape)
        entries[tensor.name] = {"dtype": "F32", "shape": shape, "data_offsets": [total, end]}
        total = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    done = 0
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        writer.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            for block in _float32_blocks(reader, tensor):
                writer.write(block)
                done += len(block)
            progress.update(done, total, "bytes")


def _float32_blocks(reader: FileIO, tensor: RenamedTensor) -> Iterator[bytes]:
    """The tensor's float32 bytes in Hugging Face's row order, in blocks of rows.

    ggml quantizes along rows, so rows may be reordered before they are dequantized.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    stored = tensor.stored
    rows = _row_count(stored)
    row_bytes = stored.nbytes // rows
    order = _row_order(rows, tensor.permuted_heads) if tensor.permuted_heads else None
    whole = None if order is None else _read(reader, stored.offset, stored.nbytes)
    step = max(1, _BLOCK_BYTES // (_FLOAT32_BYTES * prod(stored.shape) // rows))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if whole is None or order is None:
            size = (stop - start) * row_bytes
            raw = _read(reader, stored.offset + start * row_bytes, size).reshape(-1, row_bytes)
        else:
            raw = whole.reshape(rows, row_bytes)[order[start:stop]]
        yield dequantize(raw, GGMLQuantizationType(stored.kind)).astype("<f4", copy=False).tobytes()


def _row_count(stored: GgufTensor) -> int:
    """Rows that may be taken apart: a vector counts as a column where its elements stand alone."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(stored.shape) > 1:
        return prod(stored.shape[:-1])
    return prod(stored.shape) if GGML_QUANT_SIZES[GGMLQuantizationType(stored.kind)][0] == 1 else 1


def _row_order(rows: int, heads: int) -> np.ndarray:
    """Which stored row each Hugging Face row is: halves of a head, which llama.cpp interleaves."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def _read(reader: FileIO, offset: int, nbytes: int) -> np.ndarray:
    data = bytearray(nbytes)
    view = memoryview(data)
    done = 0
    while done < nbytes:
        count = os.preadv(reader.fileno(), [view[done:]], offset + done)
        if count == 0:
            raise CheckpointError(
                "the file became shorter while it was read", where=str(reader.name)
            )
        done += count
    return np.frombuffer(data, np.uint8)


def _save_tokenizer(path: Path, folder: Path) -> None:
    # The safe-path flag keeps modules in the current folder from being imported.
    command = [sys.executable, "-P", "-c", _SAVE_TOKENIZER]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(dir=folder) as alone:
        # Apart from the files that lie beside it, which transformers would read as well.
        (Path(alone) / "model.gguf").symlink_to(path.resolve())
        ended = subprocess.run(
            [*command, alone, "model.gguf", str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    if ended.returncode == 0:
        return
    lines = ended.stderr.strip().splitlines()
    raise CheckpointError(
        "transformers cannot read its tokenizer: " + (lines[-1] if lines else "no message"),
        where=str(path),
        hint="the GGUF file must hold the tokenizer.ggml.* metadata of a supported tokenizer",
        code="gguf-tokenizer",
    )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
