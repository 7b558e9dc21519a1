"""CSV files of an archive: unsafe, lying and damaged archives are refused before they do harm."""

import random
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.zip_members import csv_sources
from compiler.contracts.errors import DatasetError

DATA = b"id,question\n0,why\n"


def write(
    folder: Path, members: Mapping[str, bytes], *, packed: int = zipfile.ZIP_DEFLATED
) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, packed)
    return path


def read(path: Path, limits: ReadLimits | None = None) -> dict[str, str]:
    """The text of each file; all of it is read."""
    return {
        source.place.removeprefix(f"{path}: "): "".join(line.text for line in source.lines())
        for source in csv_sources(path, limits or ReadLimits())
    }


def refusal(path: Path, limits: ReadLimits | None = None) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read(path, limits)
    assert caught.value.hint
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(path))
    return caught.value


def patched(path: Path, name: str, *, central: int, local: int, value: bytes) -> None:
    """Write over a field of a member's two records."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    data[at + central : at + central + len(value)] = value
    at = data.rindex(b"PK\x03\x04", 0, data.index(name.encode()))
    data[at + local : at + local + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_csv_files_come_in_order_of_name(tmp_path: Path, packed: int):
    members = {"val/b.csv": b"b", "dev/c.CSV": b"c", "val/a.csv": b"a", "readme.md": b"r"}
    macos = {"__MACOSX/val/._b.csv": b"\0", "val/._b.csv": b"\0", "val/": b""}
    found = read(write(tmp_path, {**members, **macos}, packed=packed))
    assert list(found.items()) == [("dev/c.CSV", "c"), ("val/a.csv", "a"), ("val/b.csv", "b")]


@pytest.mark.parametrize(
    "name", ["/etc/a.csv", "../a.csv", "val/../../a.csv", "val\\a.csv", "C:a.csv", "a\x07.csv", "."]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str):
    path = write(tmp_path, {"good.csv": DATA, name: DATA})
    error = refusal(path)
    assert (error.message, error.code) == ("its name is no path inside the archive", "unsafe")
    assert error.where in (f"{path}: {name}", f"{path}: {name!a}")


def test_a_name_with_a_nul_is_refused(tmp_path: Path):
    path = write(tmp_path, {"a.csvXexe": DATA})
    path.write_bytes(path.read_bytes().replace(b"a.csvXexe", b"a.csv\0exe"))
    assert refusal(path).where == f"{path}: 'a.csv\\x00exe'"


def test_a_symbolic_link_is_refused(tmp_path: Path):
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("link.csv")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert refusal(path).message == "is a symbolic link"


def test_an_encrypted_file_is_refused(tmp_path: Path):
    path = write(tmp_path, {"a.csv": DATA})
    patched(path, "a.csv", central=8, local=6, value=b"\x01\0")
    assert (refusal(path).message, refusal(path).where) == ("is encrypted", f"{path}: a.csv")


def test_a_name_given_twice_is_refused(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.csv", DATA)
        archive.writestr("a.csv", b"other")
    assert refusal(path).message == "holds 'a.csv' 2 times"


@pytest.mark.parametrize(
    ("members", "held"), [({}, "nothing"), ({"a.txt": b"", "b/": b""}, "'a.txt', 'b/'")]
)
def test_an_archive_without_csv_is_refused(tmp_path: Path, members: dict[str, bytes], held: str):
    message = refusal(write(tmp_path, members)).message
    assert message == f"there is no .csv file in the archive (it holds {held})"


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_a_bound_are_refused(tmp_path: Path, packed: int):
    path = write(tmp_path, {"a.csv": DATA}, packed=packed)
    assert refusal(path).message == f"is packed by method {packed}, which is not deflate"


def test_archives_beyond_the_limits_are_refused(tmp_path: Path):
    path = write(tmp_path, {"a.csv": b"x" * 100, "b.csv": b"y" * 101, "c.txt": b""})
    size = path.stat().st_size
    assert read(path, ReadLimits(members=3, member_bytes=101, total_bytes=201, archive_bytes=size))
    found = {
        refusal(path, limits).message
        for limits in (
            ReadLimits(members=2),
            ReadLimits(member_bytes=100),
            ReadLimits(total_bytes=200),
            ReadLimits(archive_bytes=size - 1),
        )
    }
    assert found == {
        "holds 3 files, more than 2",
        "declares 101 bytes, more than 100",
        "unpacks to 201 bytes, more than 200",
        f"is an archive of {size} bytes, more than {size - 1}",
    }


def test_a_bomb_is_refused_unread(tmp_path: Path, peak_bytes):
    path = write(tmp_path, {"a.csv": bytes(16 << 20)})
    peak, error = peak_bytes(lambda: refusal(path))
    assert error.message.endswith("more than 200 times as many")
    assert error.where == f"{path}: a.csv"
    assert peak < 1 << 20


def test_a_file_never_yields_more_than_it_declares(tmp_path: Path, peak_bytes):
    """A bomb that declares 1000 bytes."""
    path = write(tmp_path, {"a.csv": b"x\n" * (8 << 20)})
    patched(path, "a.csv", central=24, local=22, value=struct.pack("<I", 1000))
    peak, error = peak_bytes(lambda: refusal(path))
    assert error.message == "is damaged behind byte 0 of its text: Bad CRC-32 for file 'a.csv'"
    assert peak < 1 << 20


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_declares_too_much_is_refused(tmp_path: Path, packed: int):
    path = write(tmp_path, {"a.csv": DATA}, packed=packed)
    patched(path, "a.csv", central=24, local=22, value=struct.pack("<I", len(DATA) + 5))
    error = refusal(path)
    assert error.where == f"{path}: a.csv"
    assert "damaged" in error.message or error.message == (
        f"ends after {len(DATA)} of {len(DATA) + 5} declared bytes"
    )


def test_what_is_no_archive_is_refused(tmp_path: Path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"id,question\n")
    assert refusal(path).message == "is a damaged archive: File is not a zip file"
    path.write_bytes(b"")
    assert refusal(path).message == "is empty"


def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path):
    """Bytes changed or cut off at random: a `DatasetError`, or text, and nothing else."""
    whole = write(tmp_path, {"a.csv": DATA * 20, "b.csv": DATA}).read_bytes()
    generator = random.Random(5)
    path = tmp_path / "a.zip"
    refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            read(path)
        except DatasetError:
            refused += 1
    assert 400 < refused < 600
