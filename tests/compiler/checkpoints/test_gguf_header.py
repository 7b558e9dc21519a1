import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf_factory import TOKENS, GgufOptions, write_gguf

from compiler.checkpoints.gguf_header import read_gguf_header
from compiler.contracts.errors import CheckpointError

U32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", U32, value)


def tensor(name: str, dimensions: list[int], *, kind: int = 0, offset: int = 0) -> bytes:
    packed = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return text(name) + packed


def raw_gguf(path: Path, *, keys: list[bytes], tensors: list[bytes], data: int = 64) -> Path:
    body = b"".join([*keys, *tensors])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + body
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(data))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(path)
    assert caught.value.where == str(path)
    return caught.value.message


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_it_agrees_with_the_reader_of_the_gguf_package(tmp_path: Path, architecture: str):
    path = write_gguf(tmp_path / "m.gguf", GgufOptions(architecture=architecture))
    header = read_gguf_header(path)
    reader = GGUFReader(path)
    expected = {
        name: field.contents() for name, field in reader.fields.items() if "GGUF." not in name
    }
    found = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in header.metadata.items()
    }
    assert found == expected
    assert header.metadata["tokenizer.ggml.tokens"] == tuple(TOKENS)
    assert [
        (tensor.name, tensor.offset, tensor.nbytes, tensor.kind, tensor.shape)
        for tensor in header.tensors.values()
    ] == [
        (
            tensor.name,
            tensor.data_offset,
            tensor.n_bytes,
            tensor.tensor_type,
            tuple(tensor.shape.tolist()[::-1]),
        )
        for tensor in reader.tensors
    ]


def test_a_file_cut_in_its_data_names_the_tensor(tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf")
    last = list(read_gguf_header(path).tensors.values())[-1]
    path.write_bytes(path.read_bytes()[: last.offset + 10])
    assert refusal(path) == (
        f"the file ends at byte {last.offset + 10}, "
        f"tensor '{last.name}' needs {last.offset + last.nbytes}"
    )


def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path: Path):
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    start = min(tensor.offset for tensor in read_gguf_header(tmp_path / "m.gguf").tensors.values())
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 400, 7), *range(400, start, 501)]:
        path.write_bytes(whole[:size])
        assert refusal(path).startswith(f"the file ends at byte {size}, ")


def test_the_place_of_the_cut_is_named(tmp_path: Path):
    path = raw_gguf(tmp_path / "m.gguf", keys=[key("some.key", 7)], tensors=[])
    path.write_bytes(path.read_bytes()[:42])
    assert refusal(path) == "the file ends at byte 42, metadata 'some.key' needs 44"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04" + bytes(100), "this is not a GGUF file: it does not begin with 'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(50), "GGUF version 1 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(50), "GGUF version 50331648 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "the file ends at byte 24, the list of tens"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1),
            "the file ends at byte 24, metadata key 0",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
            "the file ends at byte 32, metadata key 0",
        ),
    ],
)
def test_garbage_is_refused(tmp_path: Path, head: bytes, message: str):
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ([key("a", 1), key("a", 1)], [], "metadata 'a' is given twice"),
        ([text("a") + struct.pack("<I", 99)], [], "metadata 'a' has the unknown type 99"),
        (
            [text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1)],
            [],
            "metadata 'a' is an array of the unknown type 9",
        ),
        (
            [text("a") + struct.pack("<IIQ", ARRAY, U32, 2**61)],
            [],
            "the file ends at byte 128, metadata 'a' needs",
        ),
        (
            [text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**61)],
            [],
            "the file ends at byte 128, metadata 'a' needs",
        ),
        (
            [text("a") + struct.pack("<IQ", STRING, 2) + b"\xff\xff"],
            [],
            "metadata 'a' is not UTF-8",
        ),
        ([key("general.alignment", 24)], [], "general.alignment is 24, not a power of two"),
        ([key("general.alignment", 0)], [], "general.alignment is 0, not a power of two"),
        ([], [tensor("t", [])], "tensor 't' has 0 dimensions"),
        ([], [tensor("t", [1] * 5)], "tensor 't' has 5 dimensions"),
        ([], [tensor("t", [4], kind=999)], "tensor 't' has the unknown ggml type 999"),
        ([], [tensor("t", [33], kind=8)], "tensor 't' of shape [33] is not in blocks of 32"),
        ([], [tensor("t", [4, 0])], "tensor 't' of shape [0, 4] is not in blocks of 1"),
        ([], [tensor("t", [4]), tensor("t", [4], offset=32)], "tensor 't' is given twice"),
        ([], [tensor("t", [4]), tensor("u", [4], offset=8)], "tensor 'u' overlaps the tensor"),
        ([], [tensor("t", [2**40, 2**40])], "the file ends at byte 160, tensor 't' needs"),
    ],
)
def test_a_malformed_header_is_refused(
    tmp_path: Path, keys: list[bytes], tensors: list[bytes], message: str
):
    path = raw_gguf(tmp_path / "m.gguf", keys=keys, tensors=tensors)
    assert refusal(path).startswith(message)
