"""A text file as its text."""

from pathlib import Path

from compiler.contracts.errors import ConfigError


def read_text(path: Path, *, where: str, hint: str) -> str:
    """The text of a UTF-8 file, less a byte order mark.

    Args:
        path: The file.
        where: What names it, for errors.
        hint: What to do about it.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as e:
        message = f"{path} cannot be read: {e.strerror}"
        raise ConfigError(message, where=where, hint=hint, code="usage") from e
    except UnicodeDecodeError as e:
        message = f"{path} is not UTF-8: {e}"
        raise ConfigError(message, where=where, hint=hint, code="usage") from e
