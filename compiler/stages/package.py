"""modules + weights -> a bundle on disk: whole or not at all, equal to the byte for equal inputs.

Weights are evaluated a block at a time, and written once for each distinct expression of a rank,
whatever phases read it; once a phase where `merge_params` is off.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compiler.atomic_folder import partial_folder, put_new, swap
from compiler.bundle_draft import BundleDraft, ModuleDraft, ParamsPlan, file_of, plan_params
from compiler.bundle_json import manifest_from_json, manifest_to_json
from compiler.bundle_place import existing_bundle, kept_bundle
from compiler.contracts.bundle import MANIFEST_FILE, PARAMS_FOLDER, Bundle, Manifest, ModuleEntry
from compiler.contracts.errors import BundleError, CompilerError, MachineLacks
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.hashing import sha256_of
from compiler.params_file import write_params
from compiler.text import TOKENIZER_FILES

__all__ = ["BundleDraft", "ModuleDraft", "check_space", "existing_bundle", "kept_bundle", "package"]

IR_FOLDER = "ir"

_GB = 1e9
# The manifest, and what a file system takes for folders and part-filled blocks.
_SLACK_BYTES = 1 << 20


def package(
    destination: Path,
    draft: BundleDraft,
    checkpoint: CheckpointRef,
    *,
    force: bool,
    progress: Progress,
    approve: Callable[[Bundle], None] | None = None,
) -> Bundle:
    """Write the bundle; on any failure or interrupt the disk is as it was.

    A bundle of the same digest that is already there (another build was faster) is kept and
    returned, unless `force` is given.

    Args:
        destination: The bundle's folder; missing parents are made.
        draft: What to write.
        checkpoint: What the weights are computed from, and where the tokenizer's files lie.
        force: Replace another bundle, in one step. Nothing but a bundle is ever replaced.
        progress: Told the bytes of parameters.
        approve: Given the complete bundle beside its place; what it raises leaves the disk as it
            was. Not asked about one that is kept.

    Raises:
        BundleError: Something is in the way, or the place cannot be written.
        MachineLacks: The disk is too small.
        CheckpointError: The checkpoint changed since it was located.
    """
    destination = destination.absolute()
    kept = kept_bundle(destination, draft.digest, force=force)
    if kept is not None:
        return kept
    plans = plan_params(draft)
    check_space(destination, _bytes_needed(draft, plans, checkpoint))
    with ExitStack() as stack:
        with _written(destination):
            folder = stack.enter_context(partial_folder(destination))
            hashes = _write_params(folder, plans, checkpoint, progress=progress)
            _write_files(folder, draft, checkpoint)
            manifest = _write_manifest(folder, draft, plans, hashes=hashes)
        if approve is not None:
            approve(Bundle(folder, manifest))
        with _written(destination):
            kept = _put_in_place(folder, destination, draft.digest, force=force)
    return Bundle(destination, manifest) if kept is None else kept


def check_space(destination: Path, needed: int) -> None:
    """Refuse when the file system of `destination` has less than `needed` bytes free.

    Raises:
        MachineLacks: With both figures; nothing was written.
    """
    free = shutil.disk_usage(_existing_parent(destination)).free
    if needed <= free:
        return
    raise MachineLacks(
        f"the bundle needs {needed / _GB:.2f} GB of disk, {free / _GB:.2f} GB are free",
        where=str(destination),
        hint="free some, or name a folder on another disk with -o",
        code="disk-space",
    )


def _write_params(
    folder: Path, plans: Mapping[str, ParamsPlan], checkpoint: CheckpointRef, *, progress: Progress
) -> dict[str, str]:
    """Write every file of parameters; relative path -> sha256."""
    (folder / PARAMS_FOLDER).mkdir()
    total = sum(plan.layout.nbytes for plan in plans.values())
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress.update(done, total, "bytes")

    return {
        name: write_params(folder / name, plan.layout, checkpoint, written=written)
        for name, plan in plans.items()
    }


def _write_files(folder: Path, draft: BundleDraft, checkpoint: CheckpointRef) -> None:
    for source in _tokenizer_files(checkpoint):
        shutil.copyfile(source, folder / source.name)
    for module in draft.modules:
        _copy(module.source_folder, folder / _module_folder(module, draft))
    for name, content in draft.snapshots.items():
        _copy(content, folder / IR_FOLDER / name)


def _copy(content: bytes | Path, target: Path) -> None:
    """Content only: modes and times are the file system's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
    elif content.is_dir():
        shutil.copytree(content, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(content, target)


def _write_manifest(
    folder: Path, draft: BundleDraft, plans: Mapping[str, ParamsPlan], *, hashes: Mapping[str, str]
) -> Manifest:
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = Manifest(
        name=draft.name,
        digest=draft.digest,
        target=draft.target,
        config=draft.config,
        checkpoint=draft.checkpoint,
        window=draft.window,
        context=draft.context,
        vocabulary=draft.vocabulary,
        modules=tuple(_entry(m, draft, plans[file_of(draft, m)]) for m in draft.modules),
        passes=draft.passes,
        tools=draft.tools,
        files={name: hashes.get(name) or sha256_of(path) for name, path in found.items()},
        sizes={name: path.stat().st_size for name, path in found.items()},
        quantization=draft.quantization,
    )
    text = manifest_to_json(manifest)
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8", newline="\n")
    return manifest_from_json(text.encode(), where=str(folder))


def _entry(module: ModuleDraft, draft: BundleDraft, plan: ParamsPlan) -> ModuleEntry:
    return ModuleEntry(
        phase=module.phase,
        rank=module.rank,
        folder=_module_folder(module, draft),
        tokens=module.tokens,
        inputs=module.inputs,
        outputs=module.outputs,
        params=module.params,
        stored=plan.stored[module.phase],
        aliases=module.aliases,
        logits_of=module.logits_of,
        target=module.target,
    )


def _put_in_place(folder: Path, destination: Path, digest: str, *, force: bool) -> Bundle | None:
    """Rename the finished folder; the bundle that another build put there in the meantime."""
    kept = kept_bundle(destination, digest, force=force)
    if kept is not None:
        return kept
    if os.path.lexists(destination):
        swap(folder, destination)
        return None
    try:
        put_new(folder, destination)
    except FileExistsError:  # in this very moment: decide again
        return _put_in_place(folder, destination, digest, force=force)
    return None


def _bytes_needed(
    draft: BundleDraft, plans: Mapping[str, ParamsPlan], checkpoint: CheckpointRef
) -> int:
    params = sum(plan.layout.nbytes for plan in plans.values())
    modules = sum(_size(module.source_folder) for module in draft.modules)
    snapshots = sum(_size(content) for content in draft.snapshots.values())
    tokenizer = sum(_size(source) for source in _tokenizer_files(checkpoint))
    return params + modules + snapshots + tokenizer + _SLACK_BYTES


def _size(content: bytes | Path) -> int:
    if isinstance(content, bytes):
        return len(content)
    files = content.rglob("*") if content.is_dir() else (content,)
    return sum(path.stat().st_size for path in files if path.is_file())


def _tokenizer_files(checkpoint: CheckpointRef) -> list[Path]:
    return [path for name in TOKENIZER_FILES if (path := checkpoint.path / name).is_file()]


def _module_folder(module: ModuleDraft, draft: BundleDraft) -> str:
    length = module.tokens if module.phase == "prefill" else draft.context
    return f"{module.phase}_{length}_rank{module.rank}"


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


@contextmanager
def _written(destination: Path) -> Iterator[None]:
    """What the system refuses inside, said of the bundle."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(error, destination) from error


def _cannot_write(error: OSError, destination: Path) -> CompilerError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineLacks(
            f"the disk is full: {error.strerror}",
            where=str(destination),
            hint="free some, or name a folder on another disk with -o",
            code="disk-space",
        )
    return BundleError(
        f"the bundle cannot be written: {error}",
        where=str(destination),
        hint="name a folder that can be written with -o",
        code="cannot-write",
    )
