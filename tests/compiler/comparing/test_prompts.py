"""Prompts at once: a right runner passes, and each way in which one reaches another is caught."""

from typing import Literal

import numpy as np
import pytest
from window_decoder import Sizes, WindowDecoder

from compiler.contracts.comparison import SemanticCheck
from compiler.contracts.program import Phase
from compiler.contracts.target_base import WindowedRunner
from compiler.stages.semantic import check_semantics

Fault = Literal["", "logits", "cache", "idle-writes", "one-answer", "lengths"]
SIZES = Sizes(layers=3)


class Together(WindowedRunner):
    """A decoder for each slot; `fault` lets one reach another."""

    def __init__(self, slots: int, fault: Fault = "", *, sizes: Sizes = SIZES) -> None:
        self._each = [WindowDecoder(sizes) for _ in range(slots)]
        self.slots, self._fault = slots, fault
        self.window, self.context, self.layers = sizes.window, sizes.context, sizes.layers
        self.vocabulary = sizes.vocabulary
        self.takes_padding = sizes.takes_padding

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        assert phase == "prefill" or self.slots == 1
        return self._each[self.slot].step(phase, tokens, past=past, valid=valid)

    def step_slots(self, tokens: np.ndarray, *, past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        assert tokens.shape == (1, self.slots)
        rows = np.zeros((self.slots, self.vocabulary), np.float32)
        for slot, decoder in enumerate(self._each):
            if valid[slot] or self._fault == "idle-writes":
                at = int(past[0] if self._fault == "lengths" else past[slot])
                ids = tokens[:, slot : slot + 1]
                rows[slot] = decoder.step("decode", ids, past=at, valid=1)
        if self._fault == "logits":
            rows[0] += np.float32(1e-3) * rows[1]
        if self._fault == "cache" and valid.all():
            self._each[0]._caches[1, 0, past[0]] += self._each[1]._caches[1, 0, past[1]]
        if self._fault == "one-answer":
            rows[:] = rows[0]
        return rows

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        self._each[self.slot].length = self.length
        return self._each[self.slot].cache_rows(layer, start, stop)


def checked(runner: WindowedRunner) -> SemanticCheck:
    checks = check_semantics(runner, window=4, seed=0, limit=1e-4)
    return next(one for one in checks if one.name == "batch-rows")


@pytest.mark.parametrize("slots", [2, 3])
def test_prompts_that_are_apart_pass(slots: int) -> None:
    runner = Together(slots)
    check = checked(runner)
    assert (check.status, check.said, check.max_rel) == ("pass", "holds", 0.0)
    assert (runner.slot, runner.length) == (0, 0)


def test_one_prompt_has_no_neighbours() -> None:
    check = checked(Together(1))
    assert (check.status, check.said) == ("not-applicable", "the runner holds one prompt")


@pytest.mark.parametrize(
    ("fault", "layer", "said"),
    [
        ("logits", None, "with another prompt in slot 1, the prompt in slot 0, the logits"),
        ("cache", 1, "with another prompt in slot 1, the prompt in slot 0, the keys of layer 1"),
        (
            "idle-writes",
            0,
            "with the prompt in slot 0 at rest, itself, the keys and values of layer 0",
        ),
        ("one-answer", None, "with another prompt in slot 0, the prompt in slot 1, the logits"),
        ("lengths", 0, "the keys and values of layer 0"),
    ],
)
def test_a_prompt_that_reaches_another_is_caught(
    fault: Fault, layer: int | None, said: str
) -> None:
    check = checked(Together(2, fault))
    assert check.status == "fail"
    assert said in check.said
    assert check.layer == layer
