"""C-Eval: an archive of CSV files with the columns id, question, A, B, C, D and more.

question
A. first choice
...
D. fourth choice
"""

import csv
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from compiler.calibration_data.byte_source import ByteSource
from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.zip_members import csv_sources
from compiler.contracts.errors import DatasetError

_CHOICES = ("A", "B", "C", "D")
_COLUMNS = ("question", *_CHOICES)
_FORM = "the first line names the columns: id,question,A,B,C,D,answer,explanation"


def texts_of_ceval(path: Path, limits: ReadLimits) -> Generator[str, None, None]:
    """Question and choices of each row, by file name and row, each ending with a newline.

    Raises:
        DatasetError: The archive is unsafe or damaged, or a file in it is not of that form.
    """
    with closing(csv_sources(path, limits)) as sources:
        for source in sources:
            yield from _texts(source)


def _texts(source: ByteSource) -> Iterator[str]:
    rows = _rows(source)
    header, place = next(rows, ([], source.place))
    columns = [name.strip() for name in header]
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        message = f"there is no column {', '.join(missing)} (there are: {found})"
        raise DatasetError(message, where=place, hint=_FORM, code="columns")
    wanted = [columns.index(name) for name in _COLUMNS]
    for row, place in rows:
        if len(row) != len(columns):
            message = f"the row has {len(row)} fields, its header {len(columns)}"
            hint = "put quotes around a field with a comma or a line's end in it"
            raise DatasetError(message, where=place, hint=hint, code="columns")
        question, *choices = (row[at].strip() for at in wanted)
        lines = [f"{name}. {choice}" for name, choice in zip(_CHOICES, choices, strict=True)]
        yield "\n".join([question, *lines, ""])


def _rows(source: ByteSource) -> Iterator[tuple[Sequence[str], str]]:
    """Rows that are not blank, and their last lines for an error."""
    reader = csv.reader((line.text for line in source.lines()), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            place = f"{source.place}:{reader.line_num}"
            raise DatasetError(f"not CSV: {e}", where=place, hint=_FORM, code="csv") from e
        if row:
            yield row, f"{source.place}:{reader.line_num}"
