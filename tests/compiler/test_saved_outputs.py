"""Files of saved outputs: written, read, and refused with the member that is wrong."""

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.contracts.errors import RunError
from compiler.contracts.taps import Tap
from compiler.saved_outputs import (
    FORMAT,
    SavedOutputs,
    SavedPrompt,
    read_outputs,
    write_outputs,
)
from compiler.tap_store import TapFolder

VOCABULARY, CONTEXT = 8, 10
TAP = "prompt0/prefill0/model.layers.3/q"


def logits(steps: int) -> np.ndarray:
    return np.arange(steps * VOCABULARY, dtype=np.float32).reshape(steps, VOCABULARY)


def outputs(path: Path) -> SavedOutputs:
    prompts = (SavedPrompt((1, 2, 3), (4, 5), logits(3)), SavedPrompt((7,), (), logits(1)))
    return SavedOutputs("torch@bf16", "ab" * 32, 4, prompts, path)


def arrays(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """What `numpy.savez` takes; members are changed, added, or left out for None.

    A slash is written as two underscores.
    """
    whole: dict[str, np.ndarray | None] = {
        "format": np.array(FORMAT),
        "target": np.array("elsewhere"),
        "prompt0/tokens": np.array([1, 2, 3]),
        "prompt0/fed": np.array([4, 5]),
        "prompt0/logits": logits(3),
    }
    whole |= {name.replace("__", "/"): array for name, array in changed.items()}
    return {name: array for name, array in whole.items() if array is not None}


def saved(path: Path, members: Mapping[str, np.ndarray]) -> Path:
    np.savez(path, **members)  # pyright: ignore[reportArgumentType]
    return path


def zipped(path: Path, members: Mapping[str, bytes], *, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression=compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def encoded(members: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Names in the archive, and bytes."""
    found = {}
    for name, array in members.items():
        stream = io.BytesIO()
        np.save(stream, array)
        found[f"{name}.npy"] = stream.getvalue()
    return found


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The first bytes of a .npy file, whatever they claim."""
    stream = io.BytesIO()
    facts = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def read(path: Path) -> SavedOutputs:
    return read_outputs(path, vocabulary=VOCABULARY, context=CONTEXT)


def refusal(path: Path) -> RunError:
    with pytest.raises(RunError) as caught:
        read(path)
    assert caught.value.where == str(path)
    return caught.value


def test_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    given = outputs(path)
    taps = TapFolder(tmp_path / "taps")
    rows = np.array([[np.nan, np.inf], [0, 1], [2, 3]], np.float32)
    taps.put("prompt0/prefill0", Tap(3, "q"), rows)
    taps.put("prompt0/step1", Tap(None, "logits"), rows[1:2])
    write_outputs(path, given, taps)
    found = read(path)
    assert (found.target, found.model, found.window) == (given.target, given.model, given.window)
    assert [(one.tokens, one.fed) for one in found.prompts] == [((1, 2, 3), (4, 5)), ((7,), ())]
    for one, other in zip(found.prompts, given.prompts, strict=True):
        assert one.logits is not None
        assert other.logits is not None
        assert (one.logits.dtype, one.logits.tobytes()) == (np.float32, other.logits.tobytes())
        assert one.logits.flags.writeable
    assert found.tap_names == {TAP, "prompt0/step1/logits"}
    kept = found.get("prompt0/prefill0", Tap(3, "q"))
    assert kept is not None
    assert (kept.shape, kept.tobytes()) == (rows.shape, rows.tobytes())
    assert found.get("prompt0/prefill0", Tap(4, "q")) is None
    assert found.get("prompt0/step1", Tap(3, "q")) is None


def test_inputs_alone(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    write_outputs(path, replace(outputs(path), prompts=(SavedPrompt((1, 2)),)), None)
    assert read(path).prompts == (SavedPrompt((1, 2)),)
    assert read(path).tap_names == frozenset()


def test_equal_outputs_give_equal_bytes(tmp_path: Path) -> None:
    taps = TapFolder(tmp_path / "taps")
    for call in ("prompt1/prefill0", "prompt0/prefill0"):
        taps.put(call, Tap(0, "q"), logits(1))
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    write_outputs(one, outputs(one), taps)
    write_outputs(other, outputs(other), taps)
    assert one.read_bytes() == other.read_bytes()
    # Whatever day it is: a zip tells times in steps of two seconds.
    with zipfile.ZipFile(one) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    write_outputs(other, replace(outputs(other), window=5), taps)
    assert one.read_bytes() != other.read_bytes()


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    path.write_text("old")
    write_outputs(path, outputs(path), None)
    assert len(read(path).prompts) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["out.npz"]


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    write_outputs(path, outputs(path), None)
    with np.load(path, allow_pickle=False) as found:
        assert str(found["format"]) == FORMAT
        assert found["prompt0/tokens"].tolist() == [1, 2, 3]
        np.testing.assert_array_equal(found["prompt0/logits"], logits(3))


@pytest.mark.parametrize("is_compressed", [False, True])
def test_what_numpy_writes_is_read(tmp_path: Path, is_compressed: bool) -> None:
    path = tmp_path / "out.npz"
    members = arrays(window=np.array([4], np.uint8))
    members["prompt0/logits"] = np.asfortranarray(logits(3))
    members[TAP] = logits(2)
    save = np.savez_compressed if is_compressed else np.savez
    save(path, **members)  # pyright: ignore[reportArgumentType]
    found = read(path)
    assert (found.target, found.model, found.window) == ("elsewhere", "", 4)
    (prompt,) = found.prompts
    assert (prompt.tokens, prompt.fed) == ((1, 2, 3), (4, 5))
    assert prompt.logits is not None
    np.testing.assert_array_equal(prompt.logits, logits(3))
    rows = found.get("prompt0/prefill0", Tap(3, "q"))
    assert rows is not None
    np.testing.assert_array_equal(rows, logits(2))


def test_what_may_be_left_out(tmp_path: Path) -> None:
    members = arrays(target=None, prompt0__fed=None, prompt0__logits=logits(1))
    found = read(saved(tmp_path / "out.npz", members))
    assert (found.target, found.model, found.window) == ("", "", 0)
    assert found.prompts[0].fed == ()


WHOLE = np.array([1, 2, 3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": None}, "is no file of format graphlower-outputs-1"),
        ({"format": np.array("graphlower-outputs-2")}, "is no file of format graphlower-outputs-1"),
        ({"format": np.array(b"graphlower-outputs-1")}, "is no file of format"),
        ({"format": np.array([FORMAT, FORMAT])}, "is no file of format"),
        (
            {"prompt0__tokens": None, "prompt0__fed": None, "prompt0__logits": None},
            "holds no prompt",
        ),
        ({"prompt0__tokens": None}, "prompt0/tokens is missing"),
        ({"prompt2__tokens": WHOLE}, "prompt1/tokens is missing"),
        ({"prompt1__logits": logits(1)}, "prompt1/tokens is missing"),
        ({"prompt999999__fed": WHOLE}, "prompt1/tokens is missing"),
        ({"prompt0__tokens": WHOLE[:0]}, "prompt0/tokens is empty"),
        ({"prompt0__tokens": WHOLE * 1.0}, "prompt0/tokens is float64 [3], expected integers of"),
        ({"prompt0__tokens": WHOLE > 1}, "prompt0/tokens is bool [3], expected integers of one"),
        ({"prompt0__tokens": WHOLE[None]}, "prompt0/tokens is int64 [1, 3], expected integers"),
        ({"prompt0__tokens": np.array(1)}, "prompt0/tokens is int64 [], expected integers of one"),
        ({"prompt0__tokens": -WHOLE}, "prompt0/tokens holds -1, outside the vocabulary of 8"),
        ({"prompt0__tokens": WHOLE + 5}, "prompt0/tokens holds 8, outside the vocabulary of 8"),
        (
            {"prompt0__tokens": np.array([2**64 - 1], np.uint64)},
            "prompt0/tokens holds 18446744073709551615, outside the vocabulary",
        ),
        (
            {"prompt0__tokens": np.ones(11, np.int64)},
            "prompt0/tokens holds 11 tokens, the context has room for 10",
        ),
        (
            {"prompt0__fed": np.ones(8, np.int64)},
            "prompt0/fed holds 8 tokens, the context has room for 7",
        ),
        ({"prompt0__fed": np.array([4, 9])}, "prompt0/fed holds 9, outside the vocabulary of 8"),
        ({"prompt0__fed": np.array([4.0])}, "prompt0/fed is float64 [1], expected integers"),
        ({"prompt0__fed": None}, "prompt0/logits is float32 [3, 8], expected float32 [1, 8]"),
        ({"prompt0__logits": logits(2)}, "prompt0/logits is float32 [2, 8], expected float32 [3"),
        ({"prompt0__logits": logits(3).T}, "prompt0/logits is float32 [8, 3], expected float32"),
        ({"prompt0__logits": logits(3)[0]}, "prompt0/logits is float32 [8], expected float32 [3,"),
        (
            {"prompt0__logits": logits(3).astype(np.float64)},
            "prompt0/logits is float64 [3, 8], expected float32 [3, 8]: one row after the prompt",
        ),
        ({"prompt0__logits": logits(3).astype(">f4")}, "prompt0/logits is >f4 [3, 8], expected"),
        ({"prompt0__logits": logits(3).astype(complex)}, "prompt0/logits is complex128 [3, 8]"),
        ({"prompt0__logits": logits(3).astype("U")}, "prompt0/logits is <U32 [3, 8], expected"),
        ({"window": np.array(1.5)}, "window is float64 [], expected one integer"),
        ({"window": np.array([1, 2])}, "window is int64 [2], expected one integer"),
        ({"prompt0__logit": logits(3)}, "holds 'prompt0/logit', a name that means nothing here"),
        ({"prompt00__tokens": WHOLE}, "holds 'prompt00/tokens', a name that means nothing here"),
        ({"prompt9999999__tokens": WHOLE}, "holds 'prompt9999999/tokens', a name that means noth"),
        ({"prompt0__prefill0__query": WHOLE}, "holds 'prompt0/prefill0/query', a name that means"),
        (
            {"prompt0__prefill0__model.layers.3__logits": WHOLE},
            "holds 'prompt0/prefill0/model.layers.3/logits', a name that means nothing here",
        ),
        (
            {"prompt0__prefill0__model.layers.03__q": WHOLE},
            "holds 'prompt0/prefill0/model.layers.03/q', a name that means nothing here",
        ),
        ({"..__..__etc__passwd": WHOLE}, "holds '../../etc/passwd', a name that means nothing"),
        ({"__tmp__x": WHOLE}, "holds '/tmp/x', a name that means nothing here"),
        ({"prompt0__..__format": WHOLE}, "holds 'prompt0/../format', a name that means nothing"),
        ({"a\x1b[31m": WHOLE}, r"holds 'a\x1b[31m', a name that means nothing here"),
        ({"prompt0__tokens": np.array([1, None])}, "prompt0/tokens cannot be read: it holds Pyth"),
        ({"prompt0__logits": np.array([{}])}, "prompt0/logits cannot be read: it holds Python ob"),
        ({"format": np.array(FORMAT, object)}, "format cannot be read: it holds Python objects"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, changed: dict[str, np.ndarray | None], message: str
) -> None:
    error = refusal(saved(tmp_path / "out.npz", arrays(**changed)))
    assert error.message.startswith(message)
    assert error.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .npz file, or a damaged one"),
        (b"not a zip", "is no .npz file, or a damaged one"),
        (b"\x93NUMPY\x01\x00", "is no .npz file, or a damaged one"),
        (b"PK\x05\x06" + b"\xff" * 18, "is no .npz file, or a damaged one"),
        (b"PK\x05\x06" + b"\0" * 18, "is no file of format graphlower-outputs-1"),
    ],
)
def test_what_is_no_zip(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(content)
    error = refusal(path)
    assert error.message == message
    assert "--save outputs.npz" in str(error.hint)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.npz").message == "cannot be read: No such file or directory"
    assert refusal(tmp_path).message == "cannot be read: Is a directory"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.npz", arrays()).read_bytes()
    path = tmp_path / "out.npz"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert refusal(path).message == "is no .npz file, or a damaged one"


def test_a_changed_byte_gives_an_error_or_equal_arrays(tmp_path: Path) -> None:
    """Zip has no checksum over its own list, which may get shorter; each array has one."""
    generator = np.random.default_rng(0)
    path = tmp_path / "out.npz"
    refused = 0
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays(), **{TAP: logits(2)})  # pyright: ignore[reportArgumentType]
        whole = path.read_bytes()
        for position in generator.integers(0, len(whole), 600).tolist():
            changed = bytearray(whole)
            changed[position] ^= int(generator.integers(1, 256))
            path.write_bytes(changed)
            try:
                found = read(path)
                found.get("prompt0/prefill0", Tap(3, "q"))
            except RunError as error:
                assert error.where == str(path)  # noqa: PT017 - either outcome is right
                refused += 1
            else:
                (prompt,) = found.prompts
                assert prompt.tokens == (1, 2, 3)
                if prompt.logits is not None:
                    np.testing.assert_array_equal(prompt.logits, logits(3))
    assert refused > 600


def test_a_changed_header_is_no_bug_of_ours(tmp_path: Path) -> None:
    """The archive is whole, checksums included; the .npy inside is not."""
    generator = np.random.default_rng(1)
    path = tmp_path / "out.npz"
    members = encoded(arrays())
    whole = members["prompt0/tokens.npy"]
    refused = 0
    for position in generator.integers(0, 128, 600).tolist():
        changed = bytearray(whole)
        changed[position] = int(generator.integers(0, 256))
        zipped(path, {**members, "prompt0/tokens.npy": bytes(changed)})
        try:
            read(path)
        except RunError as error:
            assert error.message.startswith("prompt0/tokens ")  # noqa: PT017
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("shape", [(10**12,), (10**12, 8), (2**63, 2**63), (0, 10**30)])
@pytest.mark.parametrize("member", ["prompt0/logits", "prompt0/tokens", "format", TAP])
def test_a_header_that_claims_too_much(tmp_path: Path, member: str, shape: tuple[int, ...]) -> None:
    descr = {"prompt0/tokens": "<i8", "format": "<U20"}.get(member, "<f4")
    members = {**encoded(arrays()), f"{member}.npy": header(shape, descr) + b"\0" * 64}
    path = zipped(tmp_path / "out.npz", members)
    tracemalloc.start()
    try:
        with pytest.raises(RunError) as caught:
            read(path).get("prompt0/prefill0", Tap(3, "q"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert caught.value.where == str(path)
    assert caught.value.message.startswith(f"{member} cannot be read: its header says")
    assert caught.value.message.endswith("but 64 bytes follow")


def test_a_directory_that_lies_about_sizes(tmp_path: Path) -> None:
    """The archive's own list claims as much as the header does."""
    members = {**encoded(arrays()), "prompt0/tokens.npy": header((10**9,), "<i8") + b"\0" * 64}
    path = zipped(tmp_path / "out.npz", members)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"prompt0/tokens.npy") - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    size = struct.unpack_from("<I", content, entry + 24)[0]
    # 10 tokens more than there are, as many as the context would take.
    lie = header((10,), "<i8")
    assert len(lie) == size - 64
    body = content.index(header((10**9,), "<i8"))
    content[body : body + len(lie)] = lie
    struct.pack_into("<I", content, entry + 24, len(lie) + 80)
    path.write_bytes(content)
    assert refusal(path).message.startswith("prompt0/tokens cannot be read: ")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """50 MB of zeros in 50 KB: more tokens than any context takes."""
    data = header((6_250_000,), "<i8") + bytes(50_000_000)
    members = {**encoded(arrays()), "prompt0/tokens.npy": data}
    path = zipped(tmp_path / "out.npz", members, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    del data, members
    tracemalloc.start()
    try:
        error = refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.message == "prompt0/tokens holds 6250000 tokens, the context has room for 10"
    assert peak < 1_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_bounds(tmp_path: Path, compression: int) -> None:
    path = zipped(tmp_path / "out.npz", encoded(arrays()), compression=compression)
    message = "format cannot be read: it is compressed in a way that numpy does not write"
    assert refusal(path).message == message


@pytest.mark.parametrize("shape", [(-3,), (-1, -3)])
def test_a_negative_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    members = {**encoded(arrays()), "prompt0/tokens.npy": header(shape, "<i8") + b"\0" * 24}
    error = refusal(zipped(tmp_path / "out.npz", members))
    assert error.message.startswith(
        f"prompt0/tokens cannot be read: its header says int64 {[*shape]}"
    )


def test_bytes_behind_an_array(tmp_path: Path) -> None:
    members = encoded(arrays())
    members["prompt0/fed.npy"] += b"more"
    error = refusal(zipped(tmp_path / "out.npz", members))
    assert error.message == (
        "prompt0/fed cannot be read: its header says int64 [2], but 20 bytes follow"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("format", "holds 'format', which is no array (.npy)"),
        ("folder/", "holds 'folder/', which is no array (.npy)"),
        ("../evil.py", "holds '../evil.py', which is no array (.npy)"),
    ],
)
def test_members_that_are_no_arrays(tmp_path: Path, name: str, message: str) -> None:
    path = zipped(tmp_path / "out.npz", {**encoded(arrays()), name: b""})
    assert refusal(path).message == message


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    path = zipped(tmp_path / "out.npz", encoded(arrays()))
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name: 'prompt0/fed.npy'"),
    ):
        archive.writestr("prompt0/fed.npy", encoded(arrays())["prompt0/tokens.npy"])
    assert refusal(path).message == "holds 'prompt0/fed.npy' twice"


@pytest.mark.parametrize(
    "rows", [logits(2)[0], logits(2).astype(np.float64), np.array(1, np.float32)]
)
def test_a_tap_of_another_kind(tmp_path: Path, rows: np.ndarray) -> None:
    found = read(saved(tmp_path / "out.npz", {**arrays(), TAP: rows}))
    with pytest.raises(RunError) as caught:
        found.get("prompt0/prefill0", Tap(3, "q"))
    assert caught.value.message == (
        f"{TAP} is {rows.dtype} {list(rows.shape)}, expected float32 [tokens, width]"
    )


def test_many_taps_are_read_in_time(tmp_path: Path) -> None:
    """The archive's list is read once, not once a tap."""
    members = {f"prompt0/step{step}/model.layers.0/q": logits(1) for step in range(3000)}
    found = read(zipped(tmp_path / "out.npz", encoded({**arrays(), **members})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", pytest.fail)
        for step in range(3000):
            assert found.get(f"prompt0/step{step}", Tap(0, "q")) is not None
