"""A log file for each build: `<workspace>/logs/<name>.log`.

Its first lines are held back until the checkpoint is found good, so that bad input writes nothing.
"""

import logging
import logging.handlers
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.contracts.errors import CompilerError
from compiler.contracts.progress import Progress, StageRecord
from compiler.terminal import megabytes

if TYPE_CHECKING:
    from compiler.config import BuildConfig

# Once this stage begins, the input has been checked.
_FIRST_STAGE_LOGGED = "trace"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logger = logging.getLogger("compiler.build")


class _LoggedProgress(Progress):
    """Writes what happens to the log, and hands it on."""

    def __init__(self, shown: Progress, held: logging.handlers.MemoryHandler, file: Path) -> None:
        self._shown = shown
        self._held = held
        self._file = file

    def start(self, stage: str) -> None:
        if stage == _FIRST_STAGE_LOGGED and self._held.target is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            target = logging.FileHandler(self._file, mode="w", encoding="utf-8")
            target.setFormatter(logging.Formatter(_FORMAT))
            self._held.setTarget(target)
            self._held.capacity = 1  # from here on, line by line
        logger.info("%s begins", stage)
        self._shown.start(stage)

    def update(self, done: int, total: int, unit: str) -> None:
        self._shown.update(done, total, unit)

    def note(self, text: str) -> None:
        logger.info("%s", text)
        self._shown.note(text)

    def finish(self, record: StageRecord) -> None:
        peak = megabytes(record.peak_rss_bytes)
        logger.info("%s took %.2f s, peak memory %s", record.name, record.seconds, peak)
        self._shown.finish(record)


@contextmanager
def build_log(config: "BuildConfig", shown: Progress) -> Iterator[Progress]:
    """A progress that logs one build, and everything that the library logs meanwhile."""
    held = logging.handlers.MemoryHandler(1_000_000, flushLevel=logging.CRITICAL + 1)
    file = config.workspace_path / "logs" / f"{config.name}.log"
    root = logging.getLogger()
    level = root.level
    root.addHandler(held)
    root.setLevel(logging.INFO)
    try:
        logger.info("build of %s from %s, config %s", config.name, config.path, config.digest())
        yield _LoggedProgress(shown, held, file)
        logger.info("done")
    except BaseException as error:
        is_bug = not isinstance(error, CompilerError | KeyboardInterrupt)
        logger.info("failed: %s: %s", type(error).__name__, error, exc_info=is_bug)
        if held.target is not None:
            shown.note(f"the log is {file}")
        raise
    finally:
        root.setLevel(level)
        root.removeHandler(held)
        target = held.target
        held.close()
        if target is not None:
            target.close()
