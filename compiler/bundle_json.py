"""`manifest.json` as text: canonical, strictly read, and able to notice its own damage.

Canonical means sorted keys, two spaces, one newline at the end, UTF-8. The key `sha256` holds the
hash of the same text with `sha256` left empty, so that any changed byte of the manifest is noticed;
every other file is hashed in `files`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TypeVar

from compiler.contracts.bundle import MANIFEST_FILE, SCHEMA_VERSION, Manifest, ModuleEntry
from compiler.contracts.errors import BundleError
from compiler.contracts.program import LOGITS_OF, PHASES, TensorSpec

_VERSION_KEY = "schema_version"
_HASH_KEY = "sha256"

_Value = TypeVar("_Value")
_Word = TypeVar("_Word", bound=str)


def manifest_to_json(manifest: Manifest) -> str:
    """The canonical text of a manifest; equal manifests give equal bytes."""
    tree: dict[str, object] = {**asdict(manifest), _VERSION_KEY: SCHEMA_VERSION}
    return _canonical({**tree, _HASH_KEY: _own_hash(tree)})


def manifest_from_json(text: bytes, *, where: str) -> Manifest:
    """Read a manifest's text.

    Args:
        text: The bytes of `manifest.json`.
        where: The file, for errors.

    Raises:
        BundleError: It is not JSON, of another schema version, changed since it was written, or a
            key is unknown, missing or of the wrong type.
    """
    tree = _parse(text, where=where)
    version = tree.get(_VERSION_KEY)
    if version != SCHEMA_VERSION:
        is_newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise BundleError(
            f"the bundle's schema version is {version!r}, this version reads {SCHEMA_VERSION}",
            where=where,
            hint="it is newer: update graphlower" if is_newer else "build the bundle again",
            code="bundle-version",
        )
    content = {key: value for key, value in tree.items() if key != _HASH_KEY}
    written = _canonical({**content, _HASH_KEY: _own_hash(content)}).encode()
    if written != text:
        raise BundleError(
            f"{MANIFEST_FILE} has been changed since it was written",
            where=where,
            hint="build the bundle again, or copy it again from where it is whole",
            code="bundle-damaged",
        )
    del content[_VERSION_KEY]
    return _Reader(where).manifest(content)


def is_manifest(text: bytes) -> bool:
    """Whether this was a manifest once: damaged or of another version, but a bundle's."""
    try:
        tree = _parse(text, where="")
    except BundleError:
        return False
    return {_VERSION_KEY, _HASH_KEY, "digest", "modules"} <= tree.keys()


def _canonical(tree: Mapping[str, object]) -> str:
    text = json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n"


def _own_hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical({**content, _HASH_KEY: ""}).encode()).hexdigest()


def _parse(text: bytes, *, where: str) -> dict[str, object]:
    try:
        tree = json.loads(text.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{MANIFEST_FILE} is not valid JSON: {error}", where=where, code="bundle-damaged"
        ) from error
    if not isinstance(tree, dict):
        raise BundleError(
            f"{MANIFEST_FILE} is not a JSON object", where=where, code="bundle-damaged"
        )
    return tree


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a key stands twice")
    return tree


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


class _Reader:
    """Typed reading of the parsed tree; every complaint names the key."""

    def __init__(self, where: str) -> None:
        self._where = where

    def manifest(self, tree: object) -> Manifest:
        # Bundles that were written before the key was say nothing of it.
        whole = {"quantization": {}, **self.tree(tree, at="manifest")}
        fields = self.fields(whole, Manifest.__dataclass_fields__, at="manifest")
        files = self.mapping(fields["files"], self.sha256, at="files")
        sizes = self.mapping(fields["sizes"], self.count, at="sizes")
        for name in sorted({*files, *sizes}):
            self.relative(name, at="files")
        if files.keys() != sizes.keys():
            raise self.wrong("files", "other names than sizes", "the same names")
        modules = self.items(fields["modules"], at="modules")
        passes = self.items(fields["passes"], at="passes")
        return Manifest(
            name=self.text(fields["name"], at="name"),
            digest=self.text(fields["digest"], at="digest"),
            target=self.text(fields["target"], at="target"),
            config=self.tree(fields["config"], at="config"),
            checkpoint=self.tree(fields["checkpoint"], at="checkpoint"),
            window=self.count(fields["window"], at="window"),
            context=self.count(fields["context"], at="context"),
            vocabulary=self.count(fields["vocabulary"], at="vocabulary"),
            modules=tuple(self.module(m, at=f"modules[{n}]") for n, m in enumerate(modules)),
            passes=tuple(self.tree(p, at=f"passes[{n}]") for n, p in enumerate(passes)),
            tools=self.mapping(fields["tools"], self.text, at="tools"),
            files=files,
            sizes=sizes,
            quantization=self.tree(fields["quantization"], at="quantization"),
        )

    def module(self, tree: object, *, at: str) -> ModuleEntry:
        fields = self.fields(tree, ModuleEntry.__dataclass_fields__, at=at)
        params = self.items(fields["params"], at=f"{at}.params")
        entry = ModuleEntry(
            phase=self.one_of(fields["phase"], PHASES, at=f"{at}.phase"),
            rank=self.count(fields["rank"], at=f"{at}.rank"),
            folder=self.relative(fields["folder"], at=f"{at}.folder"),
            tokens=self.count(fields["tokens"], at=f"{at}.tokens"),
            inputs=self.specs(fields["inputs"], at=f"{at}.inputs"),
            outputs=self.specs(fields["outputs"], at=f"{at}.outputs"),
            params=tuple(self.text(name, at=f"{at}.params") for name in params),
            stored=self.mapping(fields["stored"], self.text, at=f"{at}.stored"),
            aliases=self.mapping(fields["aliases"], self.text, at=f"{at}.aliases"),
            logits_of=self.one_of(fields["logits_of"], LOGITS_OF, at=f"{at}.logits_of"),
            target=self.tree(fields["target"], at=f"{at}.target"),
        )
        if set(entry.stored) != set(entry.params):
            raise self.wrong(f"{at}.stored", "other names than params", "the same names")
        return entry

    def specs(self, value: object, *, at: str) -> tuple[TensorSpec, ...]:
        return tuple(
            self.spec(item, at=f"{at}[{n}]") for n, item in enumerate(self.items(value, at=at))
        )

    def spec(self, value: object, *, at: str) -> TensorSpec:
        fields = self.fields(value, TensorSpec.__dataclass_fields__, at=at)
        shape = self.items(fields["shape"], at=f"{at}.shape")
        return TensorSpec(
            name=self.text(fields["name"], at=f"{at}.name"),
            dtype=self.text(fields["dtype"], at=f"{at}.dtype"),
            shape=tuple(
                length if isinstance(length, str) else self.count(length, at=f"{at}.shape")
                for length in shape
            ),
        )

    def fields(self, value: object, names: Mapping[str, object], *, at: str) -> dict[str, object]:
        tree = self.tree(value, at=at)
        unknown, missing = sorted(tree.keys() - names.keys()), sorted(names.keys() - tree.keys())
        if unknown or missing:
            told = [f"unknown {unknown}"] * bool(unknown) + [f"missing {missing}"] * bool(missing)
            raise self.wrong(at, f"keys {' and '.join(told)}", f"{sorted(names)}")
        return dict(tree)

    def tree(self, value: object, *, at: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self.wrong(at, repr(value), "an object")
        return value

    def mapping(self, value: object, read: Callable[..., _Value], *, at: str) -> dict[str, _Value]:
        items = self.tree(value, at=at).items()
        return {name: read(item, at=f"{at}.{name}") for name, item in items}

    def items(self, value: object, *, at: str) -> Sequence[object]:
        if not isinstance(value, list):
            raise self.wrong(at, repr(value), "a list")
        return value

    def text(self, value: object, *, at: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(at, repr(value), "a text")
        return value

    def count(self, value: object, *, at: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(at, repr(value), "a number, not negative")
        return value

    def one_of(self, value: object, known: Sequence[_Word], *, at: str) -> _Word:
        for word in known:
            if value == word:
                return word
        raise self.wrong(at, repr(value), " or ".join(known))

    def sha256(self, value: object, *, at: str) -> str:
        text = self.text(value, at=at)
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise self.wrong(at, repr(value), "64 hexadecimal digits")
        return text

    def relative(self, value: object, *, at: str) -> str:
        """A path that stays inside the bundle, spelled in the one canonical way."""
        text = self.text(value, at=at)
        path = PurePosixPath(text)
        is_inside = path.parts and not path.is_absolute() and ".." not in path.parts
        if str(path) != text or not is_inside or "\0" in text:
            raise self.wrong(at, repr(value), "a path inside the bundle")
        return text

    def wrong(self, at: str, found: str, expected: str) -> BundleError:
        return BundleError(
            f"{at}: found {found}, expected {expected}", where=self._where, code="bundle-damaged"
        )
