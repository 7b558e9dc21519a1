"""Exceptions of Python functions that TVM calls: it passes each on as an error of its own."""

from collections.abc import Iterator
from contextlib import contextmanager


class Raised:
    """Carries what a called function raised past TVM, as it was."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside a function that TVM calls."""
        try:
            yield
        except BaseException as error:
            self._error = error
            raise

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Around the call of TVM.

        Raises:
            BaseException: What was kept; else what TVM raised.
        """
        self._error = None
        try:
            yield
        except Exception:
            kept, self._error = self._error, None
            if kept is None:
                raise
            raise kept from None
