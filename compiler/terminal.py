"""What the command line draws: results on stdout, progress, remarks and errors on stderr.

On a terminal with rich's tables, bars and colours (`NO_COLOR` is honoured), elsewhere plain lines.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from compiler.contracts.errors import CompilerError, CompilerErrors
from compiler.contracts.progress import Progress, StageRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class Terminal:
    """Prints for one command.

    Attributes:
        is_json: Whether stdout holds one JSON object and nothing else.
        is_quiet: Whether progress and remarks are left out.
    """

    def __init__(self, *, is_json: bool, is_quiet: bool) -> None:
        self.is_json = is_json
        self.is_quiet = is_quiet

    def line(self, text: str) -> None:
        """One line of the result."""
        print(_printable(text, sys.stdout))

    def stream(self, piece: str) -> None:
        """A piece of a text that is still being made."""
        print(_printable(piece, sys.stdout), end="", flush=True)

    def json(self, value: object) -> None:
        """The result, as JSON."""
        print(json.dumps(value, indent=2, allow_nan=False))

    def note(self, text: str) -> None:
        """A remark beside the result."""
        if not self.is_quiet and not self.is_json:
            _print_error(text, style="dim")

    def error(self, error: CompilerError) -> None:
        """An error, or several: on stderr, or as the one JSON object."""
        errors = each_error(error)
        if self.is_json:
            self.json({"errors": [error_json(one) for one in errors]})
            return
        for one in errors:
            where = f"{one.where}: " if one.where else ""
            _print_error(f"{where}{one.message}", head="error: ")
            if one.hint:
                _print_error(f"  hint: {one.hint}")
        if len(errors) > 1:
            _print_error(f"{len(errors)} errors")

    def interrupted(self) -> None:
        """The short line after Ctrl-C."""
        if self.is_json:
            self.error(CompilerError("interrupted", code="interrupted"))
        else:
            _print_error("\ninterrupted")

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool = False
    ) -> None:
        """Rows under headers; the first column is text, numbers are aligned to the right.

        Args:
            headers: All empty for none.
            rows: As many cells each.
            is_text: Whether every column is text, which begins at the left.
        """
        if sys.stdout.isatty():
            _rich_table(headers, rows, is_text=is_text)
            return
        shown = [headers, *rows] if any(headers) else rows
        widths = [max(len(row[i]) for row in shown) for i in range(len(headers))]
        for row in shown:
            cells = [row[0].ljust(widths[0])]
            cells += [
                cell.ljust(width) if is_text else cell.rjust(width)
                for cell, width in zip(row[1:], widths[1:], strict=True)
            ]
            self.line("  ".join(cells).rstrip())

    def tree(self, value: object) -> None:
        """A dataclass: a table of its plain fields, then one for each list of dataclasses in it."""
        scalars, lists = _split(value)
        if scalars:
            self.table(("", ""), scalars)
        for name, items in lists:
            names = [field.name for field in dataclasses.fields(items[0])]
            rows = [[_cell(key, getattr(item, key)) for key in names] for item in items]
            self.line("")
            self.line(name.replace("_", " "))
            self.table([key.removesuffix("_bytes").replace("_", " ") for key in names], rows)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress that is drawn while the block runs."""
        if self.is_quiet:
            yield Progress()
        elif sys.stderr.isatty():
            with _bars() as bars:
                yield _DrawnProgress(bars)
        else:
            yield _PlainProgress()


class _PlainProgress(Progress):
    """A line for each stage, and for each quarter of one that moves bytes."""

    def __init__(self) -> None:
        self._stage = ""
        self._quarter = 0

    def start(self, stage: str) -> None:
        self._stage, self._quarter = stage, 0
        _print_error(f"{stage} ...")

    def update(self, done: int, total: int, unit: str) -> None:
        quarter = 4 * done // max(total, 1)
        if unit == "bytes" and self._quarter < quarter < 4:
            self._quarter = quarter
            _print_error(f"{self._stage}: {_amount(done, total, unit)}")

    def note(self, text: str) -> None:
        _print_error(text)

    def finish(self, record: StageRecord) -> None:
        _print_error(_finished(record))


class _DrawnProgress(Progress):
    """One bar, that of the running stage; finished ones stay as lines."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, stage: str) -> None:
        self._task = self._bars.add_task(stage, total=None, amount="")

    def update(self, done: int, total: int, unit: str) -> None:
        if self._task is not None:
            amount = _amount(done, total, unit)
            self._bars.update(self._task, completed=done, total=total, amount=amount)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def finish(self, record: StageRecord) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self.note(_finished(record))


def each_error(error: CompilerError) -> tuple[CompilerError, ...]:
    """The single errors in what was raised."""
    return error.errors if isinstance(error, CompilerErrors) else (error,)


def error_json(error: CompilerError) -> dict[str, object]:
    """One error as `--json` prints it."""
    return {
        "code": error.code,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
    }


def plain(value: object) -> object:
    """Dataclasses, tuples and mappings as JSON values; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def megabytes(count: int) -> str:
    """Bytes as `1.23 GB` (1e9) or `456 MB`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _split(value: object, prefix: str = "") -> tuple[list[tuple[str, str]], list[tuple[str, list]]]:
    """The plain fields of a dataclass, nested ones by their path, and its lists of dataclasses."""
    assert dataclasses.is_dataclass(value), f"a tree of {type(value).__name__}"
    scalars: list[tuple[str, str]] = []
    lists: list[tuple[str, list]] = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(item):
            inner_scalars, inner_lists = _split(item, f"{name}.")
            scalars += inner_scalars
            lists += inner_lists
        elif isinstance(item, list | tuple) and item and dataclasses.is_dataclass(item[0]):
            lists.append((name, list(item)))
        else:
            label = name.removesuffix("_bytes").replace("_", " ")
            scalars.append((label, _cell(field.name, item)))
    return scalars, lists


def _cell(name: str, value: object) -> str:
    if isinstance(value, int) and name.endswith("_bytes"):
        return megabytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell('', item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell("", item) for item in value)
    return "-" if value is None else str(value)


def _amount(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{megabytes(done)} of {megabytes(total)}"
    return f"{done} of {total} {unit}"


def _finished(record: StageRecord) -> str:
    return f"{record.name}: {record.seconds:.1f} s, peak {megabytes(record.peak_rss_bytes)}"


def _printable(text: str, stream: TextIO) -> str:
    """Characters that the stream's encoding lacks, replaced."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _print_error(text: str, *, head: str = "", style: str = "") -> None:
    if not sys.stderr.isatty():
        print(_printable(head + text, sys.stderr), file=sys.stderr)
        return
    from rich.text import Text

    said = Text.assemble((head, "bold red"), (text, style))
    _console(sys.stderr).print(said, soft_wrap=True)


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=any(headers))
    for index, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if index and not is_text else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console(sys.stdout).print(table)


def _bars() -> "Bars":
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=_console(sys.stderr),
        transient=True,
    )


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=stream, highlight=False)
