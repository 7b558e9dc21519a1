"""What a target writes: equal for equal input, and enough to run in another place and process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from compiler import registry
from compiler.conformance.block_build import lower_again
from compiler.conformance.models import BIASED, WINDOW
from compiler.conformance.numbers import drawn_prompts
from compiler.conformance.results import Outcome, failed, not_applicable, passed
from compiler.conformance.subject import Subject
from compiler.contracts.runner import Runner
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.processes import run_isolated

_WRITES_NOTHING = "it builds no bundles"


def check_determinism(subject: Subject) -> Outcome:
    """The same graphs lowered again, in another process, give the same files to the byte."""
    if not subject.builds:
        return not_applicable(_WRITES_NOTHING)
    built = subject.block(BIASED, subject.dtype)
    options = subject.config(subject.dtype).target_options()
    again = lower_again(subject.target, built, options, folder=subject.folder / "again")
    count = 0
    for phase, (folder, lowered) in built.lowered.items():
        other, lowered_again = again[phase]
        first, second = _files(folder), _files(other)
        different = sorted(
            name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
        )
        if different:
            return failed(
                f"{phase} lowered twice gives other files",
                expected=f"equal bytes of {', '.join(sorted(first))}",
                came=f"different: {', '.join(different)}",
                look_at="Target.lower: times, paths, random names, the order of a set",
            )
        if lowered != lowered_again:
            return failed(
                f"{phase} lowered twice says other things of itself",
                expected=str(lowered),
                came=str(lowered_again),
                look_at="what Target.lower returns",
            )
        count += len(first)
    return passed(f"{count} files, equal to the byte in another process")


def check_reload(subject: Subject) -> Outcome:
    """A copy of the bundle gives the same logits in a new process, the checkpoint being gone."""
    if not subject.builds:
        return not_applicable(_WRITES_NOTHING)
    copy = subject.copy_of_bundle()
    runner = subject.open()
    try:
        prompts = drawn_prompts((5, WINDOW + 5), runner.vocabulary, seed=subject.seed)
        wanted = logits_of(runner, prompts)
    finally:
        runner.close()
    with _hidden(subject.checkpoint.path), _hidden(subject.bundle.path):
        found = run_isolated(logits_of_bundle, copy, prompts)
    off = [n for n, (a, b) in enumerate(zip(wanted, found, strict=True)) if not _is_same(a, b)]
    if off:
        one, other = wanted[off[0]], found[off[0]]
        return failed(
            "another process gives other logits",
            expected=f"the bits of this one: {_first(one)}",
            came=f"after call {off[0]}: {_first(other)}",
            look_at="what open takes from outside the bundle's folder",
        )
    return passed(f"{len(wanted)} calls, equal to the bit")


def logits_of_bundle(path: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The child's work: open the bundle that lies there, with the target that it names."""
    bundle = open_bundle(path)
    runner = registry.load_target(bundle.manifest.target)().open(bundle)
    try:
        return logits_of(runner, prompts)
    finally:
        runner.close()


def logits_of(runner: Runner, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Copies of the logits after each prompt, and after one more token."""
    found: list[np.ndarray] = []
    for prompt in prompts:
        runner.rewind(0)
        found += [runner.extend(prompt).copy(), runner.extend([prompt[0]]).copy()]
    return found


@contextmanager
def _hidden(folder: Path) -> Iterator[None]:
    """The folder is somewhere else meanwhile."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    try:
        yield
    finally:
        aside.rename(folder)


def _files(folder: Path) -> Mapping[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def _first(logits: np.ndarray) -> str:
    return f"{logits.dtype} {list(logits.shape)}, {', '.join(f'{x:.7g}' for x in logits[:3])}, ..."
