"""The accelerator as installing it registers it: an entry point on the import path."""

from pathlib import Path

ENTRY_POINT = "targets.vacc.target:VaccTarget"


def write_plugin(folder: Path, *, extra: str = "") -> Path:
    """A folder for `sys.path` whose metadata brings `tvm_vacc`; `extra` is further entry points."""
    metadata = folder / "graphlower_vacc-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: graphlower-vacc\nVersion: 1.0\n", encoding="utf-8"
    )
    (metadata / "entry_points.txt").write_text(
        f"[graphlower.targets]\ntvm_vacc = {ENTRY_POINT}\n{extra}", encoding="utf-8"
    )
    return folder
