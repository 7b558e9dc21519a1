"""Which windows are chosen."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from compiler.calibration_data.windows import CANDIDATES, one_window_each, windows_of_stream


def documents(*lengths: int) -> list[np.ndarray]:
    """Tokens that say where they stand: document * 1000 + place."""
    return [np.arange(length) + 1000 * number for number, length in enumerate(lengths)]


def starts(windows: list[np.ndarray]) -> list[int]:
    for window in windows:
        assert np.array_equal(window, np.arange(len(window)) + window[0])
    return [int(window[0]) for window in windows]


def test_each_long_document_gives_one_window():
    choice = one_window_each(documents(4, 9, 5, 3, 50, 60), length=5, count=3, seed=0)
    first, second, third = starts(choice.windows)
    assert 1000 <= first <= 1004
    assert second == 2000
    assert 4000 <= third <= 4045


def test_documents_beyond_the_last_window_are_not_read():
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.arange(8)

    assert len(one_window_each(endless(), length=5, count=3, seed=0).windows) == 3
    assert len(windows_of_stream(endless(), length=5, count=3, seed=0).windows) == 3


def test_every_place_of_a_document_is_chosen():
    found = Counter(
        starts(one_window_each(documents(8), length=5, count=1, seed=seed).windows)[0]
        for seed in range(400)
    )
    assert sorted(found) == [0, 1, 2, 3]
    assert min(found.values()) > 60


def test_too_few_long_documents_are_counted():
    choice = one_window_each(documents(4, 9, 7), length=8, count=2, seed=0)
    assert (len(choice.windows), choice.longest) == (1, 9)
    assert choice.found == "3 documents, 1 of them with 8 tokens or more"


def test_a_stream_is_cut_without_gap_or_overlap():
    stream = np.arange(23)
    cut = [stream[:2], stream[2:2], stream[2:13], stream[13:14], stream[14:]]
    choice = windows_of_stream(cut, length=5, count=4, seed=0)
    assert starts(choice.windows) == [0, 5, 10, 15]
    choice = windows_of_stream(cut, length=5, count=9, seed=0)
    assert (starts(choice.windows), choice.longest) == ([0, 5, 10, 15], 23)
    assert choice.found == "23 tokens, 4 windows of 5"


def test_a_stream_that_is_too_short_says_its_length():
    choice = windows_of_stream(documents(6), length=7, count=2, seed=0)
    assert (choice.windows, choice.longest) == ([], 6)
    assert choice.found == "6 tokens, 0 windows of 7"


def test_each_window_of_a_stream_is_as_likely():
    found = Counter(
        start
        for seed in range(600)
        for start in starts(
            windows_of_stream([np.arange(60)], length=10, count=2, seed=seed).windows
        )
    )
    assert sorted(found) == [0, 10, 20, 30, 40, 50]
    assert all(150 < times < 250 for times in found.values()), found


def test_the_choice_is_in_the_order_of_the_data():
    chosen = [
        starts(windows_of_stream([np.arange(160)], length=10, count=3, seed=seed).windows)
        for seed in range(20)
    ]
    assert all(windows == sorted(set(windows)) for windows in chosen)


def test_candidates_are_bounded():
    count, length = 2, 10
    pieces = [np.arange(length) + length * number for number in range(CANDIDATES * count + 50)]
    last = max(
        starts(windows_of_stream(pieces, length=length, count=count, seed=seed).windows)[-1]
        for seed in range(300)
    )
    assert last == (CANDIDATES * count - 1) * length
