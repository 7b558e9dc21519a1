"""What everything is held against: a target that runs here, or outputs that were saved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner
from compiler.saved_outputs import SavedOutputs, SavedPrompt, write_outputs
from compiler.stages.compare import Trajectory, decode_forced, decode_greedily
from compiler.stages.observe import Call, calls_of, record
from compiler.stages.perplexity import perplexity
from compiler.tap_store import TapFolder, TapSource
from compiler.workflows.comparing.inputs import prepared_inputs
from compiler.workflows.comparing.request import CompareRun
from compiler.workflows.comparing.saved import read_saved, saved_prompt, saved_trajectory


@dataclass(frozen=True)
class Reference:
    """What everything is held against.

    Attributes:
        name: As the report shows it.
        trajectories: The tokens that all are fed, and its logits on them.
        calls: The same as calls of a window at most, for taps.
        taps: Its taps, where the level asks for them and it has them.
        perplexity: Of the text, where there is one and it runs here.
    """

    name: str
    trajectories: list[Trajectory]
    calls: list[Call]
    taps: TapSource | None
    perplexity: float | None

    @property
    def chosen(self) -> list[Trajectory]:
        """The trajectories with the tokens that it would have chosen, whatever was fed."""
        return [
            replace(one, tokens=tuple(int(token) for token in one.logits.argmax(axis=-1)))
            for one in self.trajectories
        ]


def tokens_to_read(run: CompareRun, files: Sequence[SavedOutputs]) -> tuple[SavedPrompt, ...]:
    """What is read: that of the files that are compared, of a file of inputs, or prepared."""
    if files:
        return files[0].prompts
    request = run.request
    if request.inputs_file is not None:
        return _given_tokens(run, request.inputs_file)
    opener = run.opener
    inputs = prepared_inputs(run.config, opener.checkpoint, request.inputs, opener.progress)
    return tuple(SavedPrompt(tokens) for tokens in inputs)


def _given_tokens(run: CompareRun, path: Path) -> tuple[SavedPrompt, ...]:
    """Of a file of inputs; all leave room for what is generated."""
    room = run.config.frontend.shape.context_or_window - run.request.inputs.tokens
    prompts = read_saved(run, path).prompts
    for number, prompt in enumerate(prompts):
        if len(prompt.tokens) > room:
            raise RunError(
                f"prompt{number}/tokens holds {len(prompt.tokens)} tokens; to generate "
                f"{run.request.inputs.tokens}, the context has room for {max(room, 0)}",
                where=str(path),
                hint="ask for fewer with --tokens, or build with a longer context",
            )
    return tuple(SavedPrompt(prompt.tokens) for prompt in prompts)


def reference_of(
    run: CompareRun,
    file: SavedOutputs | None,
    prompts: Sequence[SavedPrompt],
    folder: Path,
) -> Reference:
    """Run the first target, or take what the file holds.

    Args:
        run: The comparison.
        file: The reference, where it is a file.
        prompts: What is read.
        folder: Where taps are kept until they are compared.
    """
    if file is None:
        return run.on(run.request.targets[0], partial(_run_reference, run, prompts, folder))
    trajectories = [saved_trajectory(prompt) for prompt in file.prompts]
    taps = file if run.has_taps and file.tap_names else None
    return Reference(file.path.name, trajectories, _calls(run, trajectories), taps, None)


def _run_reference(
    run: CompareRun, prompts: Sequence[SavedPrompt], folder: Path, runner: Runner
) -> Reference:
    trajectories = [_decode(run, runner, prompt) for prompt in prompts]
    calls = _calls(run, trajectories)
    taps = TapFolder(folder) if run.has_taps else None
    if taps is not None:
        record(runner, calls, taps, points=run.points)
    name = str(run.request.targets[0])
    return Reference(name, trajectories, calls, taps, perplexity_of(run, runner))


def _decode(run: CompareRun, runner: Runner, prompt: SavedPrompt) -> Trajectory:
    """Its own tokens; or, where a file is compared, the file's."""
    if prompt.logits is None:
        return decode_greedily(runner, prompt.tokens, steps=run.request.inputs.tokens)
    given = saved_trajectory(prompt)
    return replace(given, logits=np.stack(list(decode_forced(runner, given))))


def _calls(run: CompareRun, trajectories: Sequence[Trajectory]) -> list[Call]:
    window = run.config.frontend.shape.window
    return calls_of([(one.prompt, one.tokens[:-1]) for one in trajectories], window=window)


def perplexity_of(run: CompareRun, runner: Runner) -> float | None:
    """Of the text that was asked for; None without one."""
    if run.text is None:
        return None
    # The model's own is longer than what was built, and would tell more of each token.
    return perplexity(runner, run.text, context=run.config.frontend.shape.context_or_window)


def save_outputs(run: CompareRun, reference: Reference, path: Path, folder: Path) -> None:
    """Write what the reference said, its taps included."""
    outputs = SavedOutputs(
        target=reference.name,
        model=run.opener.checkpoint.digest,
        window=run.config.frontend.shape.window,
        prompts=tuple(saved_prompt(one) for one in reference.trajectories),
        path=path,
    )
    write_outputs(path, outputs, TapFolder(folder) if run.has_taps else None)
    run.opener.progress.note(f"saved the outputs of {reference.name}: {path}")
