"""Logits against a reference on equal tokens: of building blocks, of the model, of every length."""

from collections.abc import Iterable, Sequence

import numpy as np

from compiler import registry
from compiler.config import CompareLimits, Dtype
from compiler.conformance.models import CONTEXT, WINDOW, Block
from compiler.conformance.results import Outcome, failed, not_applicable, passed
from compiler.conformance.subject import Subject
from compiler.contracts.comparison import Comparison
from compiler.contracts.runner import Runner
from compiler.stages.compare import (
    Trajectory,
    compare_end_to_end,
    decode_forced,
    decode_greedily,
)

# What runs a block's graphs as they were before any pass.
_GRAPHS = "onnxruntime"
# Of a block: in a padded window, a whole one, and two.
_BLOCK_PROMPTS, _BLOCK_STEPS = (WINDOW - 5, WINDOW, WINDOW + 5), 3
_MODEL_PROMPTS, _MODEL_STEPS = (3, 9, 17, WINDOW, WINDOW + 5), 8
_LENGTHS = (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, CONTEXT - 1, CONTEXT)


def check_block(subject: Subject, block: Block, dtype: Dtype) -> Outcome:
    """The logits of one building block are those of its graphs before any pass."""
    if subject.target.opens == "checkpoint":
        return not_applicable("blocks are graphs, and it opens checkpoints")
    refused = subject.refused(block) or subject.refusals[dtype]
    if refused and block.may_be_refused:
        return not_applicable(f"its constraints refuse it: {refused[0].message}")
    built = subject.block(block, dtype)
    assert built.model is not None, "a block without an error"
    reference = registry.load_target(_GRAPHS)().open(built.traced)
    runner = subject.target.open(built.model)
    try:
        prompts = drawn_prompts(_BLOCK_PROMPTS, reference.vocabulary, seed=subject.seed)
        wanted = [decode_greedily(reference, one, steps=_BLOCK_STEPS) for one in prompts]
        found = _compared(subject, runner, wanted, _few(subject.limits(dtype)), against=_GRAPHS)
    finally:
        runner.close()
        reference.close()
    return _outcome(
        subject,
        found,
        tried=f"{block.about}, {dtype}",
        look_at=f"--only {block.name} --keep DIR, then DIR/blocks/{block.name}-{dtype}",
    )


def check_model(subject: Subject) -> Outcome:
    """Logits and greedy tokens of a Qwen2 are those of another target in float32."""
    found = _against_reference(subject, _MODEL_PROMPTS, steps=_MODEL_STEPS)
    return _outcome(
        subject,
        found,
        tried=f"a Qwen2 of two layers, {len(found.steps)} tokens",
        look_at="--only model --keep DIR, then python -m compiler compare DIR/*.yaml --level tap",
    )


def check_windows(subject: Subject) -> Outcome:
    """Prompts of one token, around a window's length, and up to the full context."""
    found = _against_reference(subject, _LENGTHS, steps=2)
    return _outcome(
        subject,
        found,
        tried=f"prompts of {', '.join(map(str, _LENGTHS))} tokens",
        look_at="valid_length and past_length: padding enters neither cache nor logits "
        f"(prompt 0 has {_LENGTHS[0]} token, prompt {len(_LENGTHS) - 1} fills the context)",
    )


def check_rewind(subject: Subject) -> Outcome:
    """After a rewind, other tokens are read as if the first had never been."""
    reference = subject.open_reference()
    runner = subject.open()
    try:
        first, second = drawn_prompts(
            (WINDOW + 8, WINDOW + 8), runner.vocabulary, seed=subject.seed
        )
        wanted: list[np.ndarray] = []
        found: list[np.ndarray] = []
        for one, logits in ((reference, wanted), (runner, found)):
            for kept in (0, 1, WINDOW // 2, WINDOW, WINDOW + 3):
                one.rewind(0)
                one.extend(first)
                one.rewind(kept)
                logits.append(one.extend(second[kept:]))
        trajectory = Trajectory(
            tuple(second), tuple(int(row.argmax()) for row in wanted), np.stack(wanted)
        )
        compared = compare_end_to_end(
            (subject.reference, subject.name),
            [trajectory],
            [found],
            limits=_few(subject.limits(subject.dtype)),
        )
    finally:
        runner.close()
        reference.close()
    return _outcome(
        subject,
        compared,
        tried="five rewinds, each with other tokens after it",
        look_at="Runner.rewind, and whether attention reads rows past the length",
    )


def drawn_prompts(lengths: Sequence[int], vocabulary: int, *, seed: int) -> list[tuple[int, ...]]:
    """Random tokens of these lengths."""
    random = np.random.default_rng((seed, vocabulary))
    return [tuple(random.integers(0, vocabulary, length).tolist()) for length in lengths]


def _against_reference(subject: Subject, lengths: Sequence[int], *, steps: int) -> Comparison:
    reference = subject.open_reference()
    runner = subject.open()
    try:
        prompts = drawn_prompts(lengths, runner.vocabulary, seed=subject.seed)
        wanted = [_within_context(reference, prompt, steps=steps) for prompt in prompts]
        limits = subject.limits(subject.dtype)
        limits = limits if steps > 2 else _few(limits)
        return _compared(subject, runner, wanted, limits, against=subject.reference)
    finally:
        runner.close()
        reference.close()


def _within_context(reference: Runner, prompt: Sequence[int], *, steps: int) -> Trajectory:
    """Greedy decoding that ends where the target's context does; the reference's may be longer."""
    return decode_greedily(reference, prompt, steps=min(steps, CONTEXT - len(prompt) + 1))


def _compared(
    subject: Subject,
    runner: Runner,
    wanted: Sequence[Trajectory],
    limits: CompareLimits,
    *,
    against: str,
) -> Comparison:
    candidates: Iterable[Iterable[np.ndarray]] = (decode_forced(runner, one) for one in wanted)
    return compare_end_to_end((against, subject.name), wanted, candidates, limits=limits)


def _few(limits: CompareLimits) -> CompareLimits:
    """Without the limits on shares, of which a handful of steps says nothing."""
    return limits.model_copy(update={"min_top5": 0.0, "min_greedy": 0.0})


def _outcome(subject: Subject, found: Comparison, *, tried: str, look_at: str) -> Outcome:
    if found.passed:
        largest = max(step.measures.max_rel for step in found.steps)
        limit = found.limits["max_rel"]
        against = f"{largest:.2g} of the largest logit from {found.reference}, limit {limit:g}"
        return passed(f"{tried}: {against}")
    if not found.findings:
        return failed(
            f"{tried}: nothing was compared", expected="logits", came="none", look_at=look_at
        )
    return failed(
        f"{tried}: not what {found.reference} gives",
        expected=_limits_text(found),
        came="\n".join(f"{one.where}: {one.said}" for one in found.findings),
        look_at=look_at,
    )


def _limits_text(found: Comparison) -> str:
    shown = ("max_abs", "max_rel", "min_cosine", "max_kl")
    return ", ".join(f"{name} {found.limits[name]:g}" for name in shown)
