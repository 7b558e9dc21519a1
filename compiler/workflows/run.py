"""bundle -> an open session: verified files, the target that built them, and the tokenizer."""

from pathlib import Path

from compiler import registry
from compiler.contracts.bundle import MANIFEST_FILE
from compiler.contracts.errors import RunError
from compiler.ranks.world import check_world, current_world
from compiler.stages.execute import Session
from compiler.stages.open_bundle import open_bundle
from compiler.text import Text


def open_session(bundle: Path, *, verify: bool = False, threads: int | None = None) -> Session:
    """Open a bundle for running; the session is a context manager.

    Neither torch nor transformers nor TVM's compiler is imported.

    Args:
        bundle: The bundle's folder.
        verify: Hash the parameters too, even when they were hashed before.
        threads: Threads to compute with; None leaves it to the target.

    Raises:
        BundleError: It is not a bundle, or damaged.
        ConfigError: Its target is not installed.
        MachineLacks: This machine cannot run it.
        RunError: `threads` is out of range, the tokenizer's files cannot be read, or a launcher
            started another number of processes than the bundle has ranks.
    """
    if threads is not None and threads < 1:
        raise RunError(f"threads is {threads}, expected at least 1", code="threads")
    opened = open_bundle(bundle, verify=verify)
    check_world(current_world(), opened.ranks)
    target = registry.load_target(opened.manifest.target, where=str(bundle / MANIFEST_FILE))()
    text = Text.open(opened.path)
    return Session(target.open(opened, threads=threads), text)
