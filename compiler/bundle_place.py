"""What stands where a bundle is to go, and whether it may be replaced: only a bundle ever is."""

import os
from pathlib import Path

from compiler.bundle_json import is_manifest, manifest_from_json
from compiler.contracts.bundle import MANIFEST_FILE, Bundle
from compiler.contracts.errors import BundleError


def kept_bundle(destination: Path, digest: str, *, force: bool) -> Bundle | None:
    """What a build asks before any work: the equal bundle that is there already, or None to build.

    The bundle is known by its manifest alone; `open_bundle` says whether it is whole.

    Args:
        destination: The bundle's folder.
        digest: The digest of what would be built.
        force: Replace whatever bundle is there: an equal, damaged or older one too.

    Raises:
        BundleError: Another bundle is there, or something that is not a bundle.
    """
    if force and _was_bundle(destination):
        return None
    existing = existing_bundle(destination)
    if existing is None or existing.manifest.digest == digest:
        return existing
    raise BundleError(
        "another bundle is in the way, of another configuration, checkpoint or tools",
        where=str(destination),
        hint="replace it with --force, or name another folder with -o",
        code="bundle-exists",
    )


def existing_bundle(destination: Path) -> Bundle | None:
    """The bundle that stands at `destination`, by its manifest alone; None where nothing is.

    Raises:
        BundleError: What is there is not a bundle, or a damaged one, or of another version.
    """
    if not os.path.lexists(destination):
        return None
    manifest = destination / MANIFEST_FILE
    if destination.is_symlink() or not manifest.is_file():
        raise BundleError(
            f"{_kind(destination)} is in the way that is not a bundle; it is never replaced",
            where=str(destination),
            hint="move it away, or name another folder with -o",
            code="in-the-way",
        )
    try:
        return Bundle(destination, manifest_from_json(manifest.read_bytes(), where=str(manifest)))
    except BundleError as error:
        mend = "replace it with --force" if _was_bundle(destination) else "move it away"
        raise BundleError(
            error.message,
            where=error.where,
            hint=f"{mend}, or name another folder with -o",
            code=error.code,
        ) from error


def _was_bundle(destination: Path) -> bool:
    manifest = destination / MANIFEST_FILE
    if destination.is_symlink() or not manifest.is_file():
        return False
    return is_manifest(manifest.read_bytes())


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    return "a folder" if path.is_dir() else "a file"
