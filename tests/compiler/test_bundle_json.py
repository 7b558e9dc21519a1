"""The manifest as text: read back equal, and every wrong key or value named."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from compiler.bundle_json import manifest_from_json, manifest_to_json
from compiler.contracts.bundle import Manifest, ModuleEntry
from compiler.contracts.errors import BundleError
from compiler.contracts.program import TensorSpec

Tree = dict[str, object]

MANIFEST = Manifest(
    name="tiny",
    digest="d",
    target="stand-in",
    config={"name": "你好", "lengths": [[16], []], "nothing": None, "rate": 1e-5},
    checkpoint={"digest": "c"},
    window=16,
    context=32,
    vocabulary=50,
    modules=(
        ModuleEntry(
            phase="prefill",
            rank=0,
            folder="prefill_16_rank0",
            tokens=16,
            inputs=(TensorSpec("input_ids", "int64", (1, "tokens")),),
            outputs=(TensorSpec("logits", "float32", (1, 50)),),
            params=("b", "a"),
            stored={"b": "a", "a": "a"},
            aliases={},
            logits_of="last_valid",
            target={"threads": 2},
        ),
    ),
    passes=({"name": "fold-mask", "rewrites": 1},),
    tools={"graphlower": "0.1.0"},
    files={"params/rank0.safetensors": "0" * 64},
    sizes={"params/rank0.safetensors": 4096},
    quantization={"prefill": {"weights": {"method": "nearest", "bits": 4, "group_size": 32}}},
)


def signed(change: Callable[[Tree], object]) -> bytes:
    """The manifest with a change, and the right hash over it."""
    tree = cast(Tree, json.loads(manifest_to_json(MANIFEST)))
    change(tree)
    tree["sha256"] = ""
    tree["sha256"] = hashlib.sha256(canonical(tree)).hexdigest()
    return canonical(tree)


def canonical(tree: Tree) -> bytes:
    return (json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def entry(tree: Tree) -> Tree:
    modules = cast(list[Tree], tree["modules"])
    return modules[0]


def first_input(tree: Tree) -> Tree:
    return cast(list[Tree], entry(tree)["inputs"])[0]


def test_a_manifest_is_read_back_equal() -> None:
    text = manifest_to_json(MANIFEST).encode()
    assert manifest_from_json(text, where="m") == MANIFEST
    assert signed(lambda tree: None) == text


def test_a_manifest_that_says_nothing_of_quantization_is_read() -> None:
    found = manifest_from_json(signed(lambda tree: tree.pop("quantization")), where="m")
    assert found == replace(MANIFEST, quantization={})


def test_the_text_does_not_depend_on_the_order_of_keys() -> None:
    turned = replace(MANIFEST, config=dict(reversed(list(MANIFEST.config.items()))))
    assert manifest_to_json(turned) == manifest_to_json(MANIFEST)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(extra=1), r"manifest: found keys unknown \['extra'\]"),
        (lambda t: t.pop("window"), r"manifest: found keys missing \['window'\]"),
        (lambda t: t.update(window="16"), "window: found '16', expected a number, not negative"),
        (lambda t: t.update(window=-1), "window: found -1"),
        (lambda t: t.update(window=True), "window: found True"),
        (lambda t: t.update(name=None), "name: found None, expected a text"),
        (lambda t: t.update(modules={}), "modules: found {}, expected a list"),
        (lambda t: t.update(config=[]), r"config: found \[\], expected an object"),
        (lambda t: t.update(quantization=1), "quantization: found 1, expected an object"),
        (lambda t: t.update(passes=[1]), r"passes\[0\]: found 1, expected an object"),
        (lambda t: t.update(tools={"tvm": 1}), "tools.tvm: found 1, expected a text"),
        (lambda t: t.update(files={"a": "0" * 63}), "files.a: found '000*', expected 64 hexa"),
        (lambda t: t.update(sizes={}), "files: found other names than sizes"),
        (lambda t: entry(t).update(phase="train"), "phase: found 'train', expected prefill or"),
        (lambda t: entry(t).update(folder="/a"), "folder: found '/a', expected a path inside"),
        (lambda t: entry(t).update(stored={"a": "a"}), r"modules\[0\].stored: found other names"),
        (lambda t: entry(t).pop("rank"), r"modules\[0\]: found keys missing \['rank'\]"),
        (lambda t: first_input(t).update(shape=[1.5]), r"inputs\[0\].shape: found 1.5"),
        (lambda t: first_input(t).pop("dtype"), r"inputs\[0\]: found keys missing \['dtype'\]"),
    ],
)
def test_a_wrong_key_or_value_is_named(change: Callable[[Tree], object], said: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        manifest_from_json(signed(change), where="tiny/manifest.json")
    assert caught.value.where == "tiny/manifest.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"{}", "schema version is None, this version reads 1"),
        (b'{"schema_version": 0}', "schema version is 0"),
        (b'{"schema_version": "1"}', "schema version is '1'"),
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        manifest_from_json(text, where="m")


def test_what_json_cannot_hold_is_our_own_bug() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest_to_json(replace(MANIFEST, config={"rate": float("nan")}))
