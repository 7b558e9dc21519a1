"""The bytes of weights inside an .onnx file are found, and not read."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_models import exported, write_export

from compiler.contracts.errors import CheckpointError
from compiler.onnx_source.wire import read_skeleton

VALUE = np.arange(600, dtype=np.float32).reshape(30, 20)


def model_of(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], tensors))


def packed(name: str, value: np.ndarray) -> onnx.TensorProto:
    """A tensor that holds its numbers as floats instead of raw bytes."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=value.shape)
    tensor.float_data.extend(value.ravel().tolist())
    return tensor


def bytes_of(path: Path, name: str) -> np.ndarray:
    span = read_skeleton(path).spans[name]
    with path.open("rb") as stream:
        stream.seek(span.offset)
        return np.frombuffer(stream.read(span.nbytes), np.float32)


def test_raw_and_packed_data_are_found(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensors = (onnx.numpy_helper.from_array(VALUE, "raw"), packed("packed", -VALUE))
    onnx.save(model_of(*tensors), path)
    assert np.array_equal(bytes_of(path, "raw"), VALUE.ravel())
    assert np.array_equal(bytes_of(path, "packed"), -VALUE.ravel())


def test_the_skeleton_is_the_model_without_the_bytes_of_large_tensors(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model.onnx")
    whole, hollow = exported("sdpa_18"), read_skeleton(path).model
    assert hollow.ByteSize() < whole.ByteSize() // 5
    for tensor in (*whole.graph.initializer, *hollow.graph.initializer):
        if np.prod(tensor.dims) * 4 > 1024:
            tensor.ClearField("raw_data")
    assert hollow == whole


def test_a_small_tensor_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_of(onnx.numpy_helper.from_array(VALUE[:2], "small")), path)
    (tensor,) = read_skeleton(path).model.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(tensor), VALUE[:2])


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """A sparse file of 1.5 GB is read in a process of a few MB more."""
    import resource

    path = tmp_path / "model.onnx"
    header = model_of().SerializeToString()
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[375, 1_000_000])
    head = tensor.SerializeToString()
    size = 1_500_000_000
    inner = head + b"\x4a" + varint(size)  # raw_data
    length = len(inner) + size
    graph = b"\x2a" + varint(length) + inner  # initializer
    with path.open("wb") as stream:
        # A second graph field is merged into the first, as protobuf has it.
        stream.write(header + b"\x3a" + varint(len(graph) + size) + graph)
        stream.truncate(stream.tell() + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    skeleton = read_skeleton(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert skeleton.spans["w"].nbytes == size
    assert skeleton.spans["w"].offset + size == path.stat().st_size
    assert grown < 50_000  # KB


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no graph"),
        (b"\x08\x07", "holds no graph"),
        (b"no model at all, only text", "is no ONNX model"),
        (b"\x3a\xff\xff\xff\xff\x0f", "is no ONNX model"),
        (b"\x08" + b"\xff" * 11, "a number of more than ten bytes"),
        (b"\x00\x01", "is no ONNX model"),
    ],
    ids=["empty", "no graph", "text", "longer than the file", "endless number", "field 0"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_skeleton(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, share: float) -> None:
    path = write_export(tmp_path / "model.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="is no ONNX model, or damaged"):
        read_skeleton(path)
