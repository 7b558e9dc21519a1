"""config, targets -> comparisons: identical tokens to each, the first target is the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler import registry
from compiler.bundle_place import existing_bundle
from compiler.config import BuildConfig
from compiler.contracts.comparison import Comparison
from compiler.contracts.errors import MachineLacks, RunError
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Runner, Target
from compiler.contracts.weights import CheckpointRef
from compiler.stages.compare import (
    Limits,
    Trajectory,
    compare_trajectories,
    decode_forced,
    decode_greedily,
)
from compiler.stages.open_bundle import open_bundle
from compiler.text import Text
from compiler.workflows.build import build
from compiler.workflows.frontend import locate
from compiler.workflows.plan import plan_build

# Lengths of the random prompts, in windows: one token, part of a window, one, and more than one.
_WINDOWS = (0.0, 0.4, 1.0, 1.3)
DEFAULT_PROMPTS = (
    "What is the capital of France?",
    "def fibonacci(n):",
    "中国的首都是",
)


@dataclass(frozen=True)
class _Answers:
    """What a candidate said: its logits on the reference's tokens, and its own greedy tokens."""

    forced: list[np.ndarray]
    free: list[tuple[int, ...]]


def compare(
    config: BuildConfig,
    *,
    targets: Sequence[str],
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    tokens: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Comparison, ...]:
    """Hold every target against the first one.

    Args:
        config: The model; its bundle is built where a target opens bundles.
        targets: Names, the reference first; two at least, none twice.
        prompts: Texts, used where the checkpoint has a tokenizer.
        tokens: Greedy tokens of each prompt.
        seed: Of the random prompts.
        progress: Receives the stages.

    Raises:
        RunError: Fewer than two targets, or nothing to compare.
        MachineLacks: A target cannot run here.
    """
    progress = progress or Progress()
    names = [registry.resolve_target(name) for name in targets]
    if len(names) < 2 or len(set(names)) != len(names):
        raise RunError(
            f"cannot compare {', '.join(targets) or 'nothing'}",
            hint="name two different targets: --targets torch,llvm",
        )
    if tokens < 1:
        raise RunError(f"tokens is {tokens}, expected at least 1")
    loaded = [registry.load_target(name)() for name in names]
    _refuse_missing(loaded)
    _refuse_unreadable(loaded, config)
    checkpoint = locate(config, progress=progress)
    inputs = _random_inputs(config, checkpoint, tokens=tokens, seed=seed)
    inputs += _text_inputs(config, checkpoint, prompts, tokens=tokens, progress=progress)
    if not inputs:
        raise RunError(
            f"nothing to compare: {tokens} tokens leave no room in a context of "
            f"{config.frontend.shape.context_or_window}",
            hint="ask for fewer tokens, or build with a longer context",
        )
    references = _decode(_open(loaded[0], config, checkpoint, progress), inputs, tokens)
    return tuple(
        _compare_one(
            (loaded[0].name, target.name),
            _answer(_open(target, config, checkpoint, progress), inputs, references),
            references,
            limits=Limits(**config.compare.model_dump()),
        )
        for target in loaded[1:]
    )


def _refuse_unreadable(targets: Sequence[Target], config: BuildConfig) -> None:
    """An .onnx file is no checkpoint that a reference could read by itself."""
    readers = [target.name for target in targets if target.opens == "checkpoint"]
    if config.frontend.type == "onnx" and readers:
        raise RunError(
            f"target '{readers[0]}' reads a Hugging Face checkpoint, not an .onnx file",
            where=config.place("frontend.type"),
            hint="compare targets that run bundles, or the checkpoint that the file was made from",
        )


def _refuse_missing(targets: Sequence[Target]) -> None:
    for target in targets:
        probe = target.probe()
        if not probe.can_run:
            missing = "; ".join(probe.missing)
            raise MachineLacks(f"target '{target.name}' cannot run here: {missing}")


def _random_inputs(
    config: BuildConfig, checkpoint: CheckpointRef, *, tokens: int, seed: int
) -> list[list[int]]:
    """Seeded random tokens of several lengths, as far as they fit the context."""
    shape = config.frontend.shape
    room = shape.context_or_window - tokens
    vocabulary = checkpoint.config["vocab_size"]
    assert isinstance(vocabulary, int), "verified with the tensors"
    generator = np.random.default_rng(seed)
    lengths = [min(max(1, int(shape.window * share)), room) for share in _WINDOWS]
    return [
        generator.integers(0, vocabulary, length).tolist()
        for length in dict.fromkeys(lengths)
        if length > 0
    ]


def _text_inputs(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    prompts: Sequence[str],
    *,
    tokens: int,
    progress: Progress,
) -> list[list[int]]:
    """The texts as tokens; one that cannot be compared is said, not dropped in silence."""
    room = config.frontend.shape.context_or_window - tokens
    text = Text.open(checkpoint.path)
    if not text.has_tokenizer:
        progress.note("the checkpoint has no tokenizer: random tokens alone are compared")
        return []
    found: list[list[int]] = []
    for prompt in prompts:
        ids = text.encode(prompt)
        if 0 < len(ids) <= room:
            found.append(ids)
        else:
            progress.note(f"left out: {prompt[:40]!r} has {len(ids)} tokens, {room} fit")
    return found


def _open(
    target: Target, config: BuildConfig, checkpoint: CheckpointRef, progress: Progress
) -> Runner:
    if target.opens == "checkpoint":
        progress.note(f"opening {checkpoint.path.name} with {target.name}")
        return target.open(checkpoint)
    bundle = _built(config, checkpoint, progress)
    progress.note(f"opening {bundle.name} with {target.name}")
    return target.open(open_bundle(bundle))


def _built(config: BuildConfig, checkpoint: CheckpointRef, progress: Progress) -> Path:
    """The user's bundle where it is the one of this configuration; else one beside it, our own."""
    theirs = config.workspace_path / config.name
    standing = existing_bundle(theirs)
    if standing is None or standing.manifest.digest == plan_build(config, checkpoint).digest:
        return build(config, progress=progress).bundle
    ours = config.workspace_path / "compare" / config.name
    return build(config, output=ours, force=True, progress=progress).bundle


def _decode(runner: Runner, inputs: Sequence[Sequence[int]], tokens: int) -> list[Trajectory]:
    try:
        return [decode_greedily(runner, prompt, tokens) for prompt in inputs]
    finally:
        runner.close()


def _answer(
    runner: Runner, inputs: Sequence[Sequence[int]], references: Sequence[Trajectory]
) -> _Answers:
    pairs = list(zip(inputs, references, strict=True))
    try:
        forced = [decode_forced(runner, prompt, one.tokens) for prompt, one in pairs]
        free = [decode_greedily(runner, prompt, len(one.tokens)).tokens for prompt, one in pairs]
    finally:
        runner.close()
    return _Answers(forced, free)


def _compare_one(
    names: tuple[str, str], answers: _Answers, references: Sequence[Trajectory], *, limits: Limits
) -> Comparison:
    return compare_trajectories(names, references, answers.forced, free=answers.free, limits=limits)
