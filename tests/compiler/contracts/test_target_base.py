"""Windows, padding and the context check, done once for every runner over two graphs."""

import numpy as np
import pytest

from compiler.contracts.errors import RunError
from compiler.contracts.program import Phase
from compiler.contracts.runner import WindowedRunner


class RecordingRunner(WindowedRunner):
    """Answers the number of tokens it has seen, and notes every call."""

    def __init__(self, *, window: int = 4, context: int = 10, has_decode: bool = True) -> None:
        self.window = window
        self.context = context
        self.vocabulary = 50
        self.has_decode = has_decode
        self.calls: list[tuple[Phase, list[list[int]], int, int]] = []

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        assert tokens.dtype == np.int64
        self.calls.append((phase, tokens.tolist(), past, valid))
        return np.full(self.vocabulary, past + valid, np.float32)


def test_a_prompt_shorter_than_the_window_is_padded_on_the_right() -> None:
    runner = RecordingRunner()
    assert runner.extend([7, 8, 9])[0] == 3
    assert runner.calls == [("prefill", [[7, 8, 9, 0]], 0, 3)]
    assert runner.length == 3


def test_a_prompt_of_one_window_is_one_call() -> None:
    runner = RecordingRunner()
    assert runner.extend([1, 2, 3, 4])[0] == 4
    assert runner.calls == [("prefill", [[1, 2, 3, 4]], 0, 4)]


def test_a_longer_prompt_runs_as_windows_and_its_logits_are_the_last_ones() -> None:
    runner = RecordingRunner()
    assert runner.extend([1, 2, 3, 4, 5, 6])[0] == 6
    assert runner.calls == [("prefill", [[1, 2, 3, 4]], 0, 4), ("prefill", [[5, 6, 0, 0]], 4, 2)]


def test_one_token_is_a_decode_step_also_behind_whole_windows() -> None:
    runner = RecordingRunner()
    runner.extend([1, 2, 3, 4, 5])
    runner.extend([6])
    assert runner.calls[1:] == [("decode", [[5]], 4, 1), ("decode", [[6]], 5, 1)]


def test_without_a_decode_graph_one_token_is_a_padded_window() -> None:
    runner = RecordingRunner(has_decode=False)
    runner.extend([5])
    assert runner.calls == [("prefill", [[5, 0, 0, 0]], 0, 1)]


def test_a_graph_that_gives_the_last_row_never_sees_padding() -> None:
    runner = RecordingRunner()
    runner.takes_padding = False
    runner.extend([1, 2, 3, 4, 5, 6])
    assert runner.calls == [
        ("prefill", [[1, 2, 3, 4]], 0, 4),
        ("decode", [[5]], 4, 1),
        ("decode", [[6]], 5, 1),
    ]


def test_without_a_decode_graph_it_refuses_what_does_not_fill_its_windows() -> None:
    runner = RecordingRunner(has_decode=False)
    runner.takes_padding = False
    with pytest.raises(RunError, match="6 tokens do not fill windows of 4"):
        runner.extend([1, 2, 3, 4, 5, 6])
    assert runner.calls == []


def test_tokens_go_on_behind_those_before() -> None:
    runner = RecordingRunner()
    runner.extend([1, 2, 3])
    runner.extend([4, 5])
    assert runner.calls[1] == ("prefill", [[4, 5, 0, 0]], 3, 2)
    assert runner.length == 5


def test_a_rewound_runner_writes_over_what_it_forgot() -> None:
    runner = RecordingRunner()
    runner.extend([1, 2, 3, 4, 5, 6])
    runner.rewind(2)
    assert runner.length == 2
    runner.extend([9, 9])
    assert runner.calls[-1] == ("prefill", [[9, 9, 0, 0]], 2, 2)
    assert runner.length == 4


@pytest.mark.parametrize("length", [-1, 4])
def test_a_runner_cannot_be_rewound_forward(length: int) -> None:
    runner = RecordingRunner()
    runner.extend([1, 2, 3])
    with pytest.raises(AssertionError, match=f"rewind to {length} of 3"):
        runner.rewind(length)


def test_the_context_can_be_filled_to_its_last_position() -> None:
    runner = RecordingRunner()
    runner.extend(list(range(9)))
    runner.extend([9])
    assert runner.length == runner.context == 10
    assert [past + valid for _, _, past, valid in runner.calls] == [4, 8, 9, 10]


@pytest.mark.parametrize("filled", [0, 3, 10])
def test_a_full_context_is_refused_before_any_step(filled: int) -> None:
    runner = RecordingRunner()
    if filled:
        runner.extend([1] * filled)
    runner.calls.clear()
    with pytest.raises(RunError, match="11 tokens do not fit the context of 10") as caught:
        runner.extend([1] * (11 - filled))
    assert caught.value.code == "context-full"
    assert runner.calls == []
    assert runner.length == filled


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "no tokens were given"),
        ([1, 50], "token id 50 is outside the vocabulary of 50"),
        ([-1], "token id -1 is outside the vocabulary of 50"),
    ],
)
def test_what_is_no_token_is_refused_before_any_step(tokens: list[int], said: str) -> None:
    runner = RecordingRunner()
    with pytest.raises(RunError, match=said):
        runner.extend(tokens)
    assert runner.calls == []
    assert runner.length == 0


def test_a_step_that_fails_leaves_the_windows_before_it() -> None:
    class Failing(RecordingRunner):
        def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
            if past == 4:
                raise KeyboardInterrupt
            return super().step(phase, tokens, past=past, valid=valid)

    runner = Failing()
    with pytest.raises(KeyboardInterrupt):
        runner.extend([1, 2, 3, 4, 5, 6])
    assert runner.length == 4


class EveryRowRunner(RecordingRunner):
    """Its prefill graph gives every row: the number of tokens seen at each."""

    has_every_row = True

    def step_rows(self, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        self.calls.append(("prefill", tokens.tolist(), past, valid))
        seen = np.arange(past + 1, past + valid + 1, dtype=np.float32)
        return np.repeat(seen[:, None], self.vocabulary, axis=1)


def test_rows_are_read_token_by_token_where_the_graph_gives_one() -> None:
    runner = RecordingRunner()
    assert [row[0] for row in runner.read_rows([1, 2, 3, 4, 5])] == [1, 2, 3, 4, 5]
    assert runner.calls == [("decode", [[n + 1]], n, 1) for n in range(5)]


def test_rows_are_read_in_windows_where_the_graph_gives_all() -> None:
    runner = EveryRowRunner()
    runner.extend([9])
    assert [row[0] for row in runner.read_rows([1, 2, 3, 4, 5])] == [2, 3, 4, 5, 6]
    assert runner.calls[1:] == [
        ("prefill", [[1, 2, 3, 4]], 1, 4),
        ("prefill", [[5, 0, 0, 0]], 5, 1),
    ]
    assert runner.length == 6


def test_a_window_runs_when_its_first_row_is_taken() -> None:
    runner = EveryRowRunner()
    rows = runner.read_rows([1, 2, 3, 4, 5])
    assert runner.calls == []
    next(rows)
    assert (len(runner.calls), runner.length) == (1, 4)


@pytest.mark.parametrize("kind", [RecordingRunner, EveryRowRunner])
def test_rows_that_do_not_fit_are_refused_before_any_step(kind: type[RecordingRunner]) -> None:
    runner = kind()
    with pytest.raises(RunError, match="11 tokens do not fit the context of 10"):
        next(runner.read_rows([1] * 11))
    assert (runner.calls, runner.length) == ([], 0)


def test_every_row_without_a_way_to_read_it_is_a_bug() -> None:
    runner = RecordingRunner()
    runner.has_every_row = True
    with pytest.raises(
        NotImplementedError, match="RecordingRunner has_every_row, and no step_rows"
    ):
        next(runner.read_rows([1]))
