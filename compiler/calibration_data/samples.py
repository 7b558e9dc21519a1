"""The section `dataset` -> the tokens that a model is calibrated on."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.location import form_of, located
from compiler.calibration_data.plain_text import texts_of_default
from compiler.calibration_data.windows import Choice, one_window_each, windows_of_stream
from compiler.contracts.errors import ConfigError, DatasetError

Tokenize = Callable[[str], Sequence[int]]

# Half a GB as int64.
MOST_TOKENS = 1 << 26
_DEFAULT_SOURCE = "the text that comes with the package"


class DatasetSpec(Protocol):
    """What is read of the section; `compiler.config.Dataset` has it."""

    @property
    def type(self) -> str:
        """`huggingface`, `text` or `jsonl`."""
        ...

    @property
    def name(self) -> str | None:
        """`c4`, `ceval` or `alpaca`, for `huggingface`."""
        ...

    @property
    def path(self) -> str | None:
        """A file, or a folder with one; None for the text that comes with the package."""
        ...

    @property
    def nsamples(self) -> int:
        """Windows."""
        ...

    @property
    def seqlen(self) -> int:
        """Tokens of each."""
        ...

    @property
    def seed(self) -> int:
        """Of the choice."""
        ...


@dataclass(frozen=True, eq=False)
class CalibrationSamples:
    """Windows of tokens.

    Attributes:
        tokens: int64 [n, seqlen], read-only.
        source: Where they come from, the same on every machine: `c4: c4-train.00000.json.gz`.
    """

    tokens: np.ndarray
    source: str

    @property
    def digest(self) -> str:
        """sha256 of the tokens and their shape."""
        shape = "x".join(map(str, self.tokens.shape))
        little = np.ascontiguousarray(self.tokens, dtype="<i8")
        return hashlib.sha256(shape.encode() + b":" + little.tobytes()).hexdigest()


def calibration_samples(
    dataset: DatasetSpec,
    *,
    base: Path,
    tokenize: Tokenize,
    note: Callable[[str], None],
    limits: ReadLimits | None = None,
) -> CalibrationSamples:
    """Read the data once, as far as it is needed, and choose windows of it.

    Args:
        dataset: What is asked for.
        base: The folder that `dataset.path` is relative to: the YAML's.
        tokenize: Text to token ids; it is called for a document at a time.
        note: Told where the text that comes with the package takes the place of a file.
        limits: Beyond which a file is refused.

    Raises:
        ConfigError: The section contradicts itself.
        DatasetError: The data is missing, damaged, of another form, or too little.
    """
    if dataset.nsamples * dataset.seqlen > MOST_TOKENS:
        raise ConfigError(
            f"{dataset.nsamples} windows of {dataset.seqlen} tokens are more than {MOST_TOKENS}",
            where="dataset.nsamples",
            hint=f"write `nsamples: {max(1, MOST_TOKENS // dataset.seqlen)}` or less",
            code="bad-value",
        )
    limits = limits or ReadLimits()
    if dataset.path is None:
        return _default_samples(dataset, tokenize, note, limits)
    form = form_of(dataset.type, dataset.name)
    path = located(dataset.path, base=base, form=form)
    choose = windows_of_stream if form.is_joined else one_window_each
    with closing(form.read(path, limits)) as texts:
        documents = _tokenized(texts, tokenize)
        choice = choose(documents, length=dataset.seqlen, count=dataset.nsamples, seed=dataset.seed)
    if len(choice.windows) < dataset.nsamples:
        raise _too_little(choice, dataset, place=str(path))
    kind = dataset.name if dataset.type == "huggingface" else dataset.type
    return _samples(choice, f"{kind}: {path.name}")


def _default_samples(
    dataset: DatasetSpec, tokenize: Tokenize, note: Callable[[str], None], limits: ReadLimits
) -> CalibrationSamples:
    """As many windows as are asked for, or as the text holds."""
    if dataset.type != "huggingface":
        raise ConfigError(
            f"`type: {dataset.type}` needs a file",
            where="dataset.path",
            hint=f"write `path: FILE`, or leave out `type` to take {_DEFAULT_SOURCE}",
            code="missing-key",
        )
    length, count = dataset.seqlen, dataset.nsamples
    with closing(texts_of_default(limits)) as texts:
        documents = _tokenized(texts, tokenize)
        choice = windows_of_stream(documents, length=length, count=count, seed=dataset.seed)
    if not choice.windows:
        raise _too_little(choice, dataset, place=_DEFAULT_SOURCE)
    name = "" if dataset.name is None else f", though dataset.name is {dataset.name}"
    less = "" if len(choice.windows) == count else f" ({count} are asked for)"
    note(
        f"no dataset.path{name}: calibrating on {_DEFAULT_SOURCE},"
        f" {len(choice.windows)} windows of {length} tokens{less}"
    )
    return _samples(choice, _DEFAULT_SOURCE)


def _tokenized(texts: Generator[str, None, None], tokenize: Tokenize) -> Iterator[np.ndarray]:
    for text in texts:
        yield np.asarray(tokenize(text), np.int64)


def _too_little(choice: Choice, dataset: DatasetSpec, *, place: str) -> DatasetError:
    """What there is, and which numbers would do."""
    if choice.windows:
        hint = f"write `nsamples: {len(choice.windows)}`, a smaller `seqlen`, or name more data"
    elif choice.longest:
        hint = f"write a `seqlen` of at most {choice.longest}, or name more data"
    else:
        hint = "name data that holds text"
    return DatasetError(
        f"it holds {choice.found}; {dataset.nsamples} windows of {dataset.seqlen} are asked for",
        where=place,
        hint=hint,
        code="too-little",
    )


def _samples(choice: Choice, source: str) -> CalibrationSamples:
    tokens = np.stack(choice.windows)
    tokens.flags.writeable = False
    return CalibrationSamples(tokens, source)
