"""How much of a file is taken on trust."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadLimits:
    """Beyond these a file is refused; bytes are those after unpacking.

    Attributes:
        document_bytes: Of a line, or of one object of a JSON array.
        total_bytes: Of a file, as far as it is read; of all CSV files of an archive.
        archive_bytes: Of an archive, packed.
        member_bytes: Of one file in it.
        members: Files in it.
        expansion: Times its packed size that a file in it may have.
    """

    document_bytes: int = 4 << 20
    total_bytes: int = 4 << 30
    archive_bytes: int = 32 << 20
    member_bytes: int = 64 << 20
    members: int = 4096
    expansion: int = 200
