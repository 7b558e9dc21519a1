"""Prompts that a runner holds at once: what one is given changes nothing for the others."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from compiler.comparing.agreement import Outcome, State, compare_states, unchanged
from compiler.comparing.reading import Reader

# Tokens that every prompt is extended by at once.
_STEPS = 3


def why_one_prompt(reader: Reader) -> str:
    """Why there are no other prompts; empty where there are."""
    if reader.runner.slots < 2:
        return "the runner holds one prompt"
    if not reader.takes_padding:
        return "it reads windows that are full"
    if len(reader.tokens) < 2 * _STEPS:
        return f"the context holds {len(reader.tokens)} tokens, {2 * _STEPS} are needed"
    return ""


def prompt_trials(reader: Reader, limit: float) -> Iterator[Outcome]:
    """Give one prompt other tokens; then let it rest while the others go on.

    All prompts are extended together at first, and the same kernels run on the same tokens of the
    others each time.
    """
    slots = range(reader.runner.slots)
    prompts = [_turned(reader.tokens, slot) for slot in slots]
    before = _read(reader, prompts, slots)
    for changed in slots:
        given = list(prompts)
        given[changed] = _turned(reader.changed, changed)
        after = _read(reader, given, slots)
        about = f"with another prompt in slot {changed}"
        stuck = unchanged(about, before[changed], after[changed])
        if stuck is not None:
            yield stuck
        others = [slot for slot in slots if slot != changed]
        for slot in others:
            said = f"{about}, the prompt in slot {slot}"
            yield compare_states(said, before[slot], after[slot], limit)
        about = f"with the prompt in slot {changed} at rest"
        start = _begin(reader, prompts)[changed]
        resting = _go_on(reader, prompts, others)
        for slot in others:
            said = f"{about}, the prompt in slot {slot}"
            yield compare_states(said, before[slot], resting[slot], limit)
        reader.runner.use_slot(changed)
        rows = State(reader.rows(0, reader.runner.length))
        reader.runner.use_slot(0)
        yield compare_states(f"{about}, itself", start, rows, limit)
    for slot in slots:
        reader.runner.use_slot(slot)
        reader.runner.rewind(0)
    reader.runner.use_slot(0)


def _turned(tokens: Sequence[int], slot: int) -> tuple[int, ...]:
    """Other prompts of other lengths, one for each slot."""
    cut = slot % (len(tokens) // 2)
    return (*tokens[cut + 1 :], *tokens[:1])


def _read(
    reader: Reader, prompts: Sequence[Sequence[int]], slots: Sequence[int]
) -> Mapping[int, State]:
    _begin(reader, prompts)
    return _go_on(reader, prompts, slots)


def _begin(reader: Reader, prompts: Sequence[Sequence[int]]) -> list[State]:
    """Read all but the last tokens of every prompt; the rows of each."""
    runner = reader.runner
    states: list[State] = []
    for slot, prompt in enumerate(prompts):
        runner.use_slot(slot)
        runner.rewind(0)
        runner.extend(prompt[:-_STEPS])
        states.append(State(reader.rows(0, runner.length)))
    runner.use_slot(0)
    return states


def _go_on(
    reader: Reader, prompts: Sequence[Sequence[int]], slots: Sequence[int]
) -> Mapping[int, State]:
    """Extend the prompts in `slots` together by their last tokens; what each shows then."""
    runner = reader.runner
    logits: Mapping[int, np.ndarray] = {}
    for step in range(-_STEPS, 0):
        logits = runner.extend_each({slot: prompts[slot][step] for slot in slots})
    states: dict[int, State] = {}
    for slot in slots:
        runner.use_slot(slot)
        states[slot] = reader.state(logits[slot])
    runner.use_slot(0)
    return states
