"""What lies on the disk, to assert that a refusal left it as it was."""

from pathlib import Path


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
