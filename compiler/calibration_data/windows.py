"""Tokens of documents -> windows of one length, chosen by a seed while the data goes by.

Two rules, both of one pass and of bounded memory:

- one for each document: the first documents that are long enough, each at a random place of it;
- of a stream: all documents joined, cut from the start into windows that do not overlap; of the
  first `CANDIDATES` times as many as are asked for, and the rest of their last document, each is as
  likely to be chosen as another (algorithm R of Vitter, "Random Sampling with a Reservoir", 1985).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CANDIDATES = 8


@dataclass(frozen=True)
class Choice:
    """What was chosen, in the order of the data; when it is too little, all of the data was read.

    Attributes:
        windows: int64 [length] each.
        found: What the data holds, as a sentence goes on after "it holds".
        longest: The largest length that would have given a window.
    """

    windows: list[np.ndarray]
    found: str
    longest: int


def one_window_each(
    documents: Iterable[np.ndarray], *, length: int, count: int, seed: int
) -> Choice:
    """Windows of the first `count` documents of at least `length` tokens."""
    generator = np.random.default_rng(seed)
    windows: list[np.ndarray] = []
    seen = longest = 0
    for tokens in documents:
        seen += 1
        longest = max(longest, len(tokens))
        if len(tokens) < length:
            continue
        start = int(generator.integers(0, len(tokens) - length + 1))
        windows.append(tokens[start : start + length].copy())
        if len(windows) == count:
            break
    documents_found = "1 document" if seen == 1 else f"{seen} documents"
    found = f"{documents_found}, {len(windows)} of them with {length} tokens or more"
    return Choice(windows, found, longest)


def windows_of_stream(
    documents: Iterable[np.ndarray], *, length: int, count: int, seed: int
) -> Choice:
    """`count` of the windows that the joined documents are cut into."""
    generator = np.random.default_rng(seed)
    kept: list[tuple[int, np.ndarray]] = []
    parts: list[np.ndarray] = []
    seen = held = 0
    for tokens in documents:
        parts.append(tokens)
        held += len(tokens)
        if held < length:
            continue
        joined = np.concatenate(parts)
        whole = held - held % length
        for window in joined[:whole].reshape(-1, length):
            place = seen if seen < count else int(generator.integers(0, seen + 1))
            _put(kept, place, (seen, window.copy()), count=count)
            seen += 1
        parts, held = [joined[whole:].copy()], held - whole
        if seen >= CANDIDATES * count:
            break
    windows = [window for _, window in sorted(kept, key=lambda item: item[0])]
    total = seen * length + held
    cut = "1 window" if seen == 1 else f"{seen} windows"
    return Choice(windows, f"{total} tokens, {cut} of {length}", total)


def _put(
    kept: list[tuple[int, np.ndarray]], place: int, one: tuple[int, np.ndarray], *, count: int
) -> None:
    """At its place, or behind the last; not beyond `count`."""
    if place < count:
        kept[place : place + 1] = [one]
