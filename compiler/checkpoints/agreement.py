"""Whether the tensors are those that config.json calls for, and if not, which key is off.

The key is found by trying: each number of config.json is changed to what the stored shapes suggest,
each boolean is flipped, and the model family is asked again. A change that leaves the fewest
disagreements is named in the hints.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.contracts.errors import CheckpointError, CompilerError
from compiler.contracts.model_base import ModelFamily
from compiler.contracts.weight_values import CHUNK_BYTES
from compiler.contracts.weights import CheckpointRef, StoredTensor

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_TIED_KEY = "tie_word_embeddings"
# Old exports saved this buffer; it is computed from config.json.
_ROTARY_BUFFER = ".rotary_emb.inv_freq"
_LAYER = re.compile(r"\.layers\.(\d+)\.")
# So many of a kind are spelled out; a wrong layer count makes hundreds.
_SHOWN = 20

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Disagreements:
    """Names of tensors, sorted."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.misshapen)


def disagreements(checkpoint: CheckpointRef, family: ModelFamily) -> list[CompilerError]:
    """Every disagreement between the tensors, config.json and what the family supports."""
    violations = family.violations(checkpoint.config)
    if violations:
        return [_in_config(checkpoint, violation) for violation in violations]
    expected = family.tensors(checkpoint.config)
    stored = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith(_ROTARY_BUFFER)
    }
    errors: list[CompilerError] = []
    if _has_copied_head(checkpoint, expected):
        errors = _copied_head(checkpoint)
        stored.pop(_HEAD)
    found = _compare(expected, stored)
    if not found:
        return errors
    hint = _hint(checkpoint.config, stored, family, found)
    return (
        errors
        + _missing(checkpoint, expected, found, hint)
        + _others(checkpoint, expected, found, hint)
    )


def _in_config(checkpoint: CheckpointRef, violation: CompilerError) -> CompilerError:
    """A family names the key; the file is added here."""
    place = str(checkpoint.path / "config.json")
    return CheckpointError(
        violation.message,
        where=place if violation.where is None else f"{place}: {violation.where}",
        hint=violation.hint,
        code=violation.code,
    )


def _compare(expected: Shapes, stored: Shapes) -> _Disagreements:
    both = expected.keys() & stored.keys()
    return _Disagreements(
        missing=tuple(sorted(expected.keys() - stored.keys())),
        extra=tuple(sorted(stored.keys() - expected.keys())),
        misshapen=tuple(sorted(name for name in both if expected[name] != stored[name])),
    )


def _has_copied_head(checkpoint: CheckpointRef, expected: Shapes) -> bool:
    """A head is stored beside tied embeddings, as many exporters do."""
    is_tied = checkpoint.config.get(_TIED_KEY) is True and _HEAD not in expected
    return is_tied and {_HEAD, _EMBEDDING} <= checkpoint.tensors.keys()


def _copied_head(checkpoint: CheckpointRef) -> list[CompilerError]:
    """Nothing where the head is the embedding again. Else transformers would not tie the two."""
    head, embedding = checkpoint.tensors[_HEAD], checkpoint.tensors[_EMBEDDING]
    if head.shape == embedding.shape and _has_equal_bytes(head, embedding):
        return []
    return [
        CheckpointError(
            f"'{_HEAD}' differs from '{_EMBEDDING}', yet config.json says {_TIED_KEY}: true",
            where=f"{head.file}: {_HEAD}",
            hint=f"set {_TIED_KEY} to false in config.json if the stored head is the model's",
            code="tied-head",
        )
    ]


def _has_equal_bytes(left: StoredTensor, right: StoredTensor) -> bool:
    if left.dtype != right.dtype:
        return False
    step = max(1, CHUNK_BYTES // 4 * left.shape[0] // max(1, left.nbytes))
    return all(
        np.array_equal(
            left.rows(start, stop).view(np.uint8), right.rows(start, stop).view(np.uint8)
        )
        for start, stop in (
            (start, min(start + step, left.shape[0])) for start in range(0, left.shape[0], step)
        )
    )


def _hint(
    config: Mapping[str, object], stored: Shapes, family: ModelFamily, found: _Disagreements
) -> str:
    """The keys of config.json whose change agrees best with the tensors, as a sentence."""
    best, keys = len(found), list[str]()
    for key, value in _suggestions(config, stored, family.tensors(config)):
        changed = {**config, key: value}
        if family.violations(changed):
            continue
        left = len(_compare(family.tensors(changed), stored))
        text = f"'{key}' is {_json(config.get(key))}, the tensors are those of {_json(value)}"
        if left < best:
            best, keys = left, []
        if left == best < len(found):
            keys.append(text)
    if not keys:
        return "config.json and the weights are of different models: download both again"
    return f"config.json: {' or '.join(dict.fromkeys(keys))}"


def _suggestions(
    config: Mapping[str, object], stored: Shapes, expected: Shapes
) -> Iterator[tuple[str, int | bool]]:
    layers = {int(match[1]) for name in stored if (match := _LAYER.search(name))}
    ratios = {
        (have, want)
        for name in expected.keys() & stored.keys()
        if len(stored[name]) == len(expected[name])
        for have, want in zip(stored[name], expected[name], strict=True)
        if have != want
    }
    for key, value in {_TIED_KEY: False, **config}.items():
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int):
            sizes = {value * have // want for have, want in ratios if value * have % want == 0}
            sizes |= {have for have, _ in ratios} | ({max(layers) + 1} if layers else set())
            yield from ((key, size) for size in sorted(sizes - {value}))


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _missing(
    checkpoint: CheckpointRef, expected: Shapes, found: _Disagreements, hint: str
) -> list[CompilerError]:
    errors: list[CompilerError] = [
        CheckpointError(
            f"tensor '{name}' {list(expected[name])} is missing",
            where=f"{checkpoint.path}: {name}",
            hint=hint,
            code="missing-tensor",
        )
        for name in found.missing[:_SHOWN]
    ]
    return errors + _rest(checkpoint, found.missing, "are missing", hint)


def _others(
    checkpoint: CheckpointRef, expected: Shapes, found: _Disagreements, hint: str
) -> list[CompilerError]:
    errors: list[CompilerError] = []
    for name in found.extra[:_SHOWN]:
        message = f"tensor '{name}' {list(checkpoint.tensors[name].shape)} is no part of the model"
        place = f"{checkpoint.tensors[name].file}: {name}"
        errors.append(CheckpointError(message, where=place, hint=hint, code="extra-tensor"))
    errors += _rest(checkpoint, found.extra, "are no part of the model", hint)
    for name in found.misshapen[:_SHOWN]:
        tensor = checkpoint.tensors[name]
        message = (
            f"tensor '{name}' has the shape {list(tensor.shape)}, "
            f"config.json calls for {list(expected[name])}"
        )
        place = f"{tensor.file}: {name}"
        errors.append(CheckpointError(message, where=place, hint=hint, code="tensor-shape"))
    return errors + _rest(checkpoint, found.misshapen, "have another shape", hint)


def _rest(
    checkpoint: CheckpointRef, names: tuple[str, ...], problem: str, hint: str
) -> list[CompilerError]:
    left = len(names) - _SHOWN
    if left <= 0:
        return []
    place = str(checkpoint.path)
    message = f"{left} more tensors {problem}, up to '{names[-1]}'"
    return [CheckpointError(message, where=place, hint=hint, code="more-tensors")]
