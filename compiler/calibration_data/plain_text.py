"""One UTF-8 file as stretches that end where a line does, so that a tokenizer can take them."""

import io
from collections.abc import Generator, Iterable, Iterator
from importlib import resources
from pathlib import Path

from compiler.calibration_data.byte_source import ByteSource, opened
from compiler.calibration_data.limits import ReadLimits

DEFAULT_TEXT = "default.txt"

# Less is not cut off; a line that is longer is cut anywhere.
_STRETCH = 1 << 16


def texts_of_file(path: Path, limits: ReadLimits) -> Generator[str, None, None]:
    """The file's text in stretches that join to the whole; a line ends with a line feed alone.

    Raises:
        DatasetError: It is not UTF-8, or cannot be read.
    """
    with opened(path, limits) as source:
        yield from _stretches(source.blocks())


def texts_of_default(limits: ReadLimits) -> Generator[str, None, None]:
    """The text that comes with the package, in stretches."""
    resource = resources.files("compiler.calibration_data").joinpath(DEFAULT_TEXT)
    with resource.open("rb") as stream:
        yield from _stretches(ByteSource(stream, place=DEFAULT_TEXT, limits=limits).blocks())


def _stretches(blocks: Iterable[str]) -> Iterator[str]:
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    held = ""
    for block in blocks:
        held += ends.decode(block)
        if len(held) < _STRETCH:
            continue
        cut = held.rfind("\n") + 1 or len(held)
        yield held[:cut]
        held = held[cut:]
    held += ends.decode("", final=True)
    if held:
        yield held
