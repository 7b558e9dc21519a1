"""Saved outputs in a comparison: as inputs, as the reference, or as what is held against it."""

from pathlib import Path

import numpy as np

from compiler.contracts.errors import RunError
from compiler.saved_outputs import SavedOutputs, SavedPrompt, read_outputs
from compiler.stages.compare import Trajectory
from compiler.workflows.comparing.inputs import vocabulary_of
from compiler.workflows.comparing.request import CompareRun


def read_saved(run: CompareRun, path: Path) -> SavedOutputs:
    """A file of outputs or inputs, of this model.

    Raises:
        RunError: It is no such file, of another checkpoint, or its taps are of other windows.
    """
    checkpoint = run.opener.checkpoint
    saved = read_outputs(
        path,
        vocabulary=vocabulary_of(checkpoint),
        context=run.config.frontend.shape.context_or_window,
    )
    if saved.model and saved.model != checkpoint.digest:
        raise RunError(
            f"its outputs are of another checkpoint ({saved.model[:16]}, not "
            f"{checkpoint.digest[:16]})",
            where=str(path),
            hint="compare it with the YAML of the model that gave them",
        )
    window = run.config.frontend.shape.window
    if saved.window and saved.window != window and run.has_taps:
        raise RunError(
            f"its taps are of windows of {saved.window} tokens, the model's has {window}",
            where=str(path),
            hint="compare with --level end-to-end, or with frontend.shape.input_ids of the file",
        )
    return saved


def compared_files(run: CompareRun) -> list[SavedOutputs]:
    """All files that are compared, the reference first where it is one; of equal tokens.

    Raises:
        RunError: A file lacks what is compared, or two are of other tokens.
    """
    request = run.request
    paths = [] if request.against is None else [request.against]
    paths += [choice.file for choice in request.targets if choice.file is not None]
    files = [read_saved(run, path) for path in paths]
    for file in files:
        if any(prompt.logits is None for prompt in file.prompts):
            raise RunError(
                "holds inputs and no logits",
                where=str(file.path),
                hint="read it with --inputs, and save what a target says of it with --save",
            )
        if run.has_taps and not file.tap_names:
            raise RunError(
                "holds logits and no taps",
                where=str(file.path),
                hint=f"save it with --level {request.level}, or compare with --level end-to-end",
            )
        if _tokens(file) != _tokens(files[0]):
            raise RunError(
                f"its tokens are not those of {files[0].path}",
                where=str(file.path),
                hint="have both targets read one file: --inputs inputs.npz --save outputs.npz",
            )
    return files


def _tokens(file: SavedOutputs) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(prompt.tokens, prompt.fed) for prompt in file.prompts]


def saved_trajectory(prompt: SavedPrompt) -> Trajectory:
    """What was read, fed and said; the last token, fed to nobody, is the largest logit."""
    assert prompt.logits is not None, "a file of outputs"
    last = int(np.argmax(prompt.logits[-1]))
    return Trajectory(prompt.tokens, (*prompt.fed, last), prompt.logits)


def saved_prompt(trajectory: Trajectory) -> SavedPrompt:
    """A trajectory as a file keeps it."""
    return SavedPrompt(trajectory.prompt, trajectory.tokens[:-1], trajectory.logits)
