"""Token ids in, text out while it is made: whole characters only, and nothing of a stop text."""

from collections.abc import Sequence

from compiler.text.tokenizer import Text

# What a decoder puts in the place of bytes that are no character, or not yet one.
_REPLACEMENT = "\ufffd"


class TextStream:
    """The pieces of one generation; joined, they are `text.decode` of all tokens up to a stop text.

    Args:
        text: The tokenizer.
        stop: Texts that end the generation; the first to appear is cut off with all after it.
    """

    def __init__(self, text: Text, *, stop: Sequence[str] = ()) -> None:
        assert all(stop), "an empty stop text"
        self.is_stopped = False
        self._text = text
        self._stop = tuple(stop)
        self._held = ""  # decoded, but it may be the start of a stop text
        # Tokens since the boundary before the last. A decoder may drop the first token's leading
        # space, so that new text is read off behind text that is already out, never from its start.
        self._window: list[int] = []
        self._out = 0  # how many tokens of the window are out

    def push(self, token: int) -> str:
        """Take one token; the text that is certain now, often none."""
        self._window.append(token)
        if not self._text.is_settled_by(token):
            return ""
        piece = self._decoded()
        if piece.endswith(_REPLACEMENT):
            return ""
        if piece:
            self._window = self._window[self._out :]
        self._out = len(self._window)
        return self._past_stops(piece)

    def finish(self) -> str:
        """The rest, when no token follows."""
        rest = self._past_stops(self._decoded())
        rest, self._held = rest + self._held, ""
        self._window, self._out = [], 0
        return rest

    def _decoded(self) -> str:
        known = self._text.decode(self._window[: self._out])
        return self._text.decode(self._window)[len(known) :]

    def _past_stops(self, piece: str) -> str:
        if self.is_stopped:
            return ""
        pending = self._held + piece
        found = [at for stop in self._stop if (at := pending.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return pending[: min(found)]
        keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return pending[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` starts with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
