"""C4 and its like: one object with "text" a line, plain or packed with gzip."""

from collections.abc import Generator
from pathlib import Path

from compiler.calibration_data.byte_source import opened
from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.records import record_of_line, string_of

_FORM = 'write one {"text": "..."} a line'


def texts_of_json_lines(path: Path, limits: ReadLimits) -> Generator[str, None, None]:
    """The texts, in the file's order; blank lines are passed over.

    Raises:
        DatasetError: The file, or a line of it, is not of that form.
    """
    with opened(path, limits) as source:
        for line in source.lines():
            if line.text.isspace():
                continue
            record = record_of_line(line.text.rstrip(), place=line.place, hint=_FORM)
            yield string_of(record, "text", place=line.place, hint=_FORM)
