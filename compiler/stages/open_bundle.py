"""folder -> Bundle: nothing in it is used before it was found whole.

Everything but the parameters is hashed at each opening; the parameters at the first, and again when
their inode, size or times changed, or when asked.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from compiler.bundle_json import manifest_from_json
from compiler.contracts.bundle import MANIFEST_FILE, PARAMS_FOLDER, Bundle, Manifest
from compiler.contracts.errors import BundleError, CompilerError, raise_all
from compiler.hashing import remembered_sha256, sha256_of

_COPY_AGAIN = "build the bundle again, or copy it again from where it is whole"


def open_bundle(path: Path, *, verify: bool = False) -> Bundle:
    """Check a bundle and read its manifest.

    Args:
        path: The bundle's folder.
        verify: Hash the parameters too, even when they were hashed before.

    Raises:
        BundleError: It is not a bundle, of another schema version, or damaged; every file that is
            missing, changed or not the bundle's is named.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise BundleError(
            f"there is no bundle: {MANIFEST_FILE} is missing"
            if path.is_dir()
            else "there is no such folder",
            where=str(path),
            hint="build one: python -m compiler build model.yaml",
            code="no-bundle",
        )
    try:
        folder = path.resolve(strict=True)
        manifest = manifest_from_json(file.read_bytes(), where=str(file))
        raise_all(_wrong_files(folder, manifest))
        raise_all(_wrong_content(folder, manifest.files, verify=verify))
    except OSError as error:
        raise BundleError(
            f"the bundle cannot be read: {error}", where=str(path), code="cannot-read"
        ) from error
    return Bundle(folder, manifest)


def _wrong_files(folder: Path, manifest: Manifest) -> list[CompilerError]:
    """Missing, unlisted and resized files, and parameters or modules that no file holds."""
    found = _files(folder)
    errors = [_damage(folder / name, "is missing") for name in manifest.files if name not in found]
    for name, size in sorted(found.items()):
        expected = manifest.sizes.get(name)
        if expected is None:
            errors.append(
                _damage(folder / name, "is not one of the bundle's files", hint="move it away")
            )
        elif size is None:
            errors.append(_damage(folder / name, "is not a regular file"))
        elif size != expected:
            errors.append(_damage(folder / name, f"has {size} bytes, expected {expected}"))
    for module in manifest.modules:
        params = manifest.params_file(module)
        if module.params and params not in manifest.files:
            errors.append(_damage(folder / params, "is missing, and the manifest does not list it"))
        if not any(name.startswith(f"{module.folder}/") for name in manifest.files):
            errors.append(_damage(folder / module.folder, "holds no file of the bundle"))
    return errors


def _files(folder: Path) -> dict[str, int | None]:
    """Relative path -> size of everything but the manifest; None for what is no regular file."""
    found: dict[str, int | None] = {}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            path = Path(parent) / name
            is_regular = path.is_file() and not path.is_symlink()
            found[path.relative_to(folder).as_posix()] = path.stat().st_size if is_regular else None
    found.pop(MANIFEST_FILE, None)
    return found


def _wrong_content(folder: Path, files: Mapping[str, str], *, verify: bool) -> list[CompilerError]:
    errors: list[CompilerError] = []
    for name, expected in sorted(files.items()):
        can_be_remembered = name.startswith(f"{PARAMS_FOLDER}/") and not verify
        digest = (remembered_sha256 if can_be_remembered else sha256_of)(folder / name)
        if digest != expected:
            errors.append(
                _damage(folder / name, f"has been changed: sha256 {digest}, expected {expected}")
            )
    return errors


def _damage(path: Path, what: str, *, hint: str = _COPY_AGAIN) -> CompilerError:
    return BundleError(f"{path.name} {what}", where=str(path), hint=hint, code="bundle-damaged")
