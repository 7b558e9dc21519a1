"""Initializers by reference, inside the file and beside it; what is refused names the tensor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_models import exported

from compiler.contracts.errors import CheckpointError
from compiler.contracts.weights import StoredTensor
from compiler.onnx_source.tensors import data_files, initializers
from compiler.onnx_source.wire import read_skeleton

NAME = "model.model.embed_tokens.weight"


def write_external(folder: Path, *, location: str = "model.data") -> Path:
    path = folder / "model.onnx"
    onnx.save(
        exported("eager_18"),
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )
    return path


def located(path: Path) -> dict[str, StoredTensor | None]:
    found = initializers(path, read_skeleton(path))
    return {name: one.stored for name, one in found.items()}


@pytest.mark.parametrize("is_external", [False, True])
def test_every_weight_is_found(tmp_path: Path, is_external: bool) -> None:
    model = exported("eager_18")
    path = tmp_path / "model.onnx"
    if is_external:
        path = write_external(tmp_path)
    else:
        onnx.save(model, path)
    found = initializers(path, read_skeleton(path))
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        one = found[tensor.name]
        if value.nbytes <= 1024:
            assert np.array_equal(one.read(), value)
        elif one.stored is not None:
            assert np.array_equal(one.stored.rows(0, len(value)), value)
            assert one.stored.file.name == ("model.data" if is_external else "model.onnx")
    stored = [one.stored for one in found.values() if one.stored is not None]
    assert len(stored) > 40
    names = ["model.data", "model.onnx"] if is_external else ["model.onnx"]
    assert [file.name for file in data_files(path, read_skeleton(path))] == names


def change(path: Path, edit: Callable[[onnx.TensorProto], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    edit(next(tensor for tensor in model.graph.initializer if tensor.name == NAME))
    path.write_bytes(model.SerializeToString())


def entry(key: str, value: str) -> Callable[[onnx.TensorProto], None]:
    def edit(tensor: onnx.TensorProto) -> None:
        kept = [one for one in tensor.external_data if one.key != key]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
        tensor.external_data.add(key=key, value=value)

    return edit


def retyped(kind: int) -> Callable[[onnx.TensorProto], None]:
    def edit(tensor: onnx.TensorProto) -> None:
        tensor.data_type = kind

    return edit


REFUSED = {
    "a folder above": (entry("location", "../model.data"), "leaves the folder"),
    "an absolute place": (entry("location", "/model.data"), "leaves the folder"),
    "no place": (entry("location", ""), "leaves the folder"),
    "a missing file": (entry("location", "other.data"), "other.data of tensor .* is missing"),
    "an offset that is none": (entry("offset", "-4"), "the offset of its data is '-4'"),
    "a length that is none": (entry("length", "x"), "the length of its data is 'x'"),
    "another length": (entry("length", "8"), "8 bytes are declared, its shape needs 20480"),
    "beyond the end": (entry("offset", "99999999"), "its data ends at byte .* of model.data"),
    "int4": (retyped(onnx.TensorProto.INT4), "its type int4 is not supported"),
    "float8": (retyped(onnx.TensorProto.FLOAT8E4M3FN), "its type float8e4m3fn is not supported"),
    "no type": (retyped(0), "its type undefined is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path: Path, case: str) -> None:
    edit, reason = REFUSED[case]
    path = write_external(tmp_path)
    change(path, edit)
    with pytest.raises(CheckpointError, match=reason) as caught:
        located(path)
    assert NAME in str(caught.value)
    assert caught.value.where == str(path)


def test_a_short_data_file_is_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="its data ends at byte"):
        located(path)


def test_a_tensor_of_another_size_than_its_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(exported("eager_18"), path)

    def widen(tensor: onnx.TensorProto) -> None:
        tensor.dims[0] += 1

    change(path, widen)
    with pytest.raises(CheckpointError, match="it holds 20480 bytes, its shape needs 20736"):
        located(path)
