import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from compiler.checkpoints.safetensors_header import HEADER_LIMIT, tensors_in
from compiler.contracts.errors import CheckpointError, CompilerErrors


def write(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, *, dtype: str = "F32", shape: list[int] | None = None) -> object:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> CheckpointError:
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        tensors_in(path)
    assert path.read_bytes() == before
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(path))
    return caught.value


def test_what_the_reference_library_writes_is_read_back(tmp_path: Path):
    random = np.random.default_rng(0)
    arrays = {
        "a": random.standard_normal((5, 3), dtype=np.float32),
        "b": random.standard_normal((4,)).astype(np.float16),
        "c": random.standard_normal((2, 7)).astype(ml_dtypes.bfloat16),
    }
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = tensors_in(tmp_path / "m.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a": "float32",
        "b": "float16",
        "c": "bfloat16",
    }
    for name, array in arrays.items():
        read = found[name].rows(0, array.shape[0])
        assert read.shape == array.shape
        assert read.tobytes() == array.tobytes()


def test_a_truncated_file_names_the_tensor_and_the_bytes(tmp_path: Path):
    header = {"a": entry(0, 8), "b": entry(8, 48)}
    path = write(tmp_path / "m.safetensors", header, bytes(48))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    assert refusal(path).message == (f"the file ends at byte {size - 5}, tensor 'b' needs {size}")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8)}, 12, "4 bytes after the last tensor belong to no tensor"),
        ({"a": entry(4, 8)}, 8, "4 bytes before tensor 'a' belong to no tensor"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "4 bytes before tensor 'b'"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensor 'b' overlaps the tensor before it"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "tensor 'b' overlaps the tensor before it"),
        ({"a": entry(8, 0, shape=[2])}, 8, "tensor 'a' has the data_offsets [8, 0]"),
        ({"a": entry(-4, 8)}, 8, "tensor 'a' has the data_offsets [-4, 8]"),
        ({"a": entry(0, 8, shape=[3])}, 8, "tensor 'a' has 8 bytes, F32 [3] needs 12"),
        ({"a": entry(0, 8, shape=[2], dtype="F16")}, 8, "tensor 'a' has 8 bytes, F16 [2] needs 4"),
        ({"a": entry(0, 8, shape=[-2])}, 8, "tensor 'a' has the shape [-2]"),
        (
            {"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
            8,
            "tensor 'a' has the",
        ),
        (
            {"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
            8,
            "tensor 'a' has the shape 2",
        ),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor 'a' has the data_offsets None"),
        ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, "tensor 'a' has no dtype"),
        ({"a": 3}, 8, "tensor 'a' is not described by an object"),
        ({"a": entry(0, 8, dtype="F8_E4M3")}, 8, "tensor 'a' is F8_E4M3"),
        (b"[]", 0, "the JSON is not an object"),
        (b'{"a": 1', 0, "not JSON"),
        (b'{"a": {}, "a": {}}', 0, "the key 'a' is given twice"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, header: object, data: int, message: str):
    path = write(tmp_path / "m.safetensors", header, bytes(data))
    assert refusal(path).message.startswith(message)


def test_each_refused_dtype_is_one_error_with_its_count(tmp_path: Path):
    header = {
        "a.qweight": entry(0, 8, dtype="I32"),
        "b.qweight": entry(8, 16, dtype="I32"),
        "c": entry(16, 24, dtype="F64", shape=[1]),
    }
    path = write(tmp_path / "m.safetensors", header, bytes(24))
    with pytest.raises(CompilerErrors) as caught:
        tensors_in(path)
    messages = [error.message for error in caught.value.errors]
    assert messages == ["tensor 'c' is F64", "tensor 'a.qweight' is I32, and so are 1 more"]
    assert "F32, F16, BF16" in str(caught.value)


def test_a_file_shorter_than_its_length_field(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\x01\x02")
    assert refusal(path).message == "the file has 2 bytes, too few for a safetensors header"


def test_a_header_that_the_file_does_not_hold(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    assert refusal(path).message == "the file ends at byte 10, its header needs 1008"


def test_a_header_over_the_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((HEADER_LIMIT + 1).to_bytes(8, "little"))
    assert refusal(path).message == (
        "the header claims 100000001 bytes, over the limit of 100000000"
    )
