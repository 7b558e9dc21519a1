"""bundle -> what holds of it without a reference: for one that came from elsewhere."""

from collections.abc import Mapping
from pathlib import Path

from compiler import registry
from compiler.contracts.bundle import MANIFEST_FILE
from compiler.contracts.comparison import Report
from compiler.contracts.errors import BundleError, MachineLacks
from compiler.stages.open_bundle import open_bundle
from compiler.stages.semantic import check_semantics


def check_bundle(path: Path, *, seed: int) -> Report:
    """Try every semantic check on a bundle, with the target that built it.

    Args:
        path: The bundle's folder.
        seed: Of the prompts.

    Raises:
        BundleError: It is no bundle, or damaged.
        MachineLacks: Its target cannot run here.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    limit = _limit(manifest.config, where=str(path / MANIFEST_FILE))
    target = registry.load_target(manifest.target, where=str(path / MANIFEST_FILE))()
    probe = target.probe()
    if not probe.can_run:
        raise MachineLacks(
            f"target '{target.name}' cannot run here: {'; '.join(probe.missing)}",
            where=str(path),
            hint="install what is missing, or check the bundle where it can run",
        )
    runner = target.open(bundle)
    try:
        checks = check_semantics(runner, window=manifest.window, seed=seed, limit=limit)
    finally:
        runner.close()
    environment = {"bundle": manifest.name, "target": manifest.target, "digest": manifest.digest}
    return Report(semantic={manifest.name: checks}, environment=environment)


def _limit(config: Mapping[str, object], *, where: str) -> float:
    """`compare.max_rel` of the configuration that the bundle was built from."""
    limits = config.get("compare")
    limit = limits.get("max_rel") if isinstance(limits, Mapping) else None
    if not isinstance(limit, int | float):
        raise BundleError(
            "its configuration has no compare.max_rel",
            where=where,
            hint="another version of graphlower built it: build it again",
        )
    return float(limit)
