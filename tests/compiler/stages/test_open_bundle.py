"""Opening: whatever was changed in a bundle is noticed and named."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_factory import make_checkpoint, make_draft

from compiler import hashing
from compiler.bundle_json import manifest_to_json
from compiler.contracts.bundle import Manifest
from compiler.contracts.errors import CompilerError, CompilerErrors
from compiler.contracts.progress import Progress
from compiler.stages import open_bundle as open_bundle_module
from compiler.stages.open_bundle import open_bundle
from compiler.stages.package import package

FILES = (
    "config.json",
    "decode_32_rank0/module.so",
    "decode_32_rank0/notes/schedule.txt",
    "generation_config.json",
    "ir/decode/00_traced.onnx",
    "manifest.json",
    "params/rank0.safetensors",
    "prefill_16_rank0/module.so",
)
PARAMS = "params/rank0.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    folder = tmp_path / "tiny"
    draft = make_draft(tmp_path / "modules")
    package(folder, draft, checkpoint, force=False, progress=Progress())
    return folder


def flip(path: Path, at: int, *, keep_times: bool = False) -> None:
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x20
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def refusal(bundle: Path, *, verify: bool = False) -> str:
    with pytest.raises(CompilerError) as caught:
        open_bundle(bundle, verify=verify)
    assert caught.value.exit_code == 2
    return str(caught.value)


def rewrite(bundle: Path, change: Callable[[Manifest], Manifest]) -> None:
    """A consistent manifest that says something else."""
    manifest = change(open_bundle(bundle).manifest)
    (bundle / "manifest.json").write_text(manifest_to_json(manifest), encoding="utf-8")


def test_a_whole_bundle_opens_and_is_found_again_by_name(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.path == bundle
    assert (opened.manifest.window, opened.manifest.context) == (16, 32)
    assert open_bundle(bundle, verify=True) == opened


def test_a_bundle_opens_through_a_link_and_a_relative_path(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle.parent / "link").symlink_to("tiny")
    monkeypatch.chdir(bundle.parent)
    assert open_bundle(Path("link")).path == bundle
    assert open_bundle(Path("tiny")).path == bundle


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, -1, 0.5])
def test_a_flipped_byte_in_any_file_is_named(bundle: Path, name: str, at: float) -> None:
    path = bundle / name
    flip(path, int(at * path.stat().st_size) if at == 0.5 else int(at))
    said = refusal(bundle)
    assert str(path) in said
    assert "has been changed" in said or "is not valid JSON" in said


def test_no_byte_of_the_manifest_can_change_unnoticed(bundle: Path) -> None:
    path = bundle / "manifest.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        for mask in (0x01, 0x20):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            assert "manifest.json" in refusal(bundle)
    for changed in (whole + b"\n", whole.replace(b"  ", b" "), whole[:-1], b"", b"[]", b"\xff"):
        path.write_bytes(changed)
        assert "manifest.json" in refusal(bundle)


def test_an_edited_value_in_the_manifest_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    tree = json.loads(path.read_bytes())
    tree["context"] = 64
    text = json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    assert "manifest.json has been changed since it was written" in refusal(bundle)


def test_params_are_hashed_once_and_again_when_they_changed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return hashing.hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(hashing, "sha256_of", counting)
    open_bundle(bundle)
    open_bundle(bundle)
    assert hashed == ["rank0.safetensors"]
    flip(bundle / PARAMS, -1)
    assert PARAMS in refusal(bundle)
    assert len(hashed) == 2


def test_verify_hashes_what_is_remembered(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the memory cannot see (bytes that rotted on the disk) `verify` does."""
    known = open_bundle(bundle).manifest.files[PARAMS]
    flip(bundle / PARAMS, -1)
    monkeypatch.setattr(open_bundle_module, "remembered_sha256", lambda _: known)
    open_bundle(bundle)
    said = refusal(bundle, verify=True)
    assert f"{bundle / PARAMS}: rank0.safetensors has been changed" in said


def test_params_changed_behind_a_restored_time_are_noticed(bundle: Path) -> None:
    open_bundle(bundle)
    flip(bundle / PARAMS, -1, keep_times=True)
    assert "rank0.safetensors has been changed" in refusal(bundle)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    said = refusal(bundle)
    assert f"{bundle / name}: {Path(name).name} is missing" in said


def test_a_truncated_file_is_named_with_both_sizes(bundle: Path) -> None:
    os.truncate(bundle / PARAMS, 5000)
    assert "rank0.safetensors has 5000 bytes, expected " in refusal(bundle)


@pytest.mark.parametrize("name", ["extra.txt", "params/rank1.safetensors", "ir/.hidden"])
def test_a_file_that_is_not_the_bundles_is_named(bundle: Path, name: str) -> None:
    (bundle / name).write_text("x")
    said = refusal(bundle)
    assert f"{bundle / name}: {Path(name).name} is not one of the bundle's files" in said


@pytest.mark.parametrize("name", ["config.json", "prefill_16_rank0"])
def test_a_link_in_the_place_of_a_file_or_folder_is_refused(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    assert str(bundle / name) in refusal(bundle)


def test_a_linked_folder_that_is_not_the_bundles_is_named(bundle: Path) -> None:
    (bundle / "ir" / "more").symlink_to(bundle.parent / "modules")
    assert f"{bundle / 'ir' / 'more'}: more is not one of" in refusal(bundle)


def test_everything_that_is_wrong_is_said_at_once(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "extra.txt").write_text("x")
    with pytest.raises(CompilerErrors) as caught:
        open_bundle(bundle)
    assert [str(error.where) for error in caught.value.errors] == [
        str(bundle / "config.json"),
        str(bundle / "extra.txt"),
    ]
    assert caught.value.exit_code == 2


def test_every_changed_file_is_named(bundle: Path) -> None:
    flip(bundle / "config.json", 0)
    flip(bundle / PARAMS, -1)
    with pytest.raises(CompilerErrors) as caught:
        open_bundle(bundle)
    assert [Path(str(error.where)).name for error in caught.value.errors] == [
        "config.json",
        "rank0.safetensors",
    ]


@pytest.mark.parametrize(
    ("path", "said"),
    [("absent", "there is no such folder"), ("modules", "there is no bundle: manifest.json is")],
)
def test_what_is_no_bundle_is_said(bundle: Path, path: str, said: str) -> None:
    text = refusal(bundle.parent / path)
    assert said in text
    assert "python -m compiler build" in text


def test_a_newer_schema_says_so(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    said = refusal(bundle)
    assert "the bundle's schema version is 2, this version reads 1" in said
    assert "update graphlower" in said


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "a/../../b", "./config.json"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, name: str) -> None:
    def listed(manifest: Manifest) -> Manifest:
        files = {**manifest.files, name: "0" * 64}
        return replace(manifest, files=files, sizes={**manifest.sizes, name: 1})

    rewrite(bundle, listed)
    assert f"found '{name}', expected a path inside the bundle" in refusal(bundle)


def test_a_module_folder_outside_the_bundle_is_refused(bundle: Path) -> None:
    def moved(manifest: Manifest) -> Manifest:
        module = replace(manifest.modules[0], folder="../modules")
        return replace(manifest, modules=(module,))

    rewrite(bundle, moved)
    assert "modules[0].folder: found '../modules'" in refusal(bundle)


def test_a_module_without_files_or_parameters_is_named(bundle: Path) -> None:
    def other(manifest: Manifest) -> Manifest:
        module = replace(manifest.modules[0], folder="decode_64_rank3", rank=3)
        return replace(manifest, modules=(module,))

    rewrite(bundle, other)
    said = refusal(bundle)
    assert "rank3.safetensors is missing, and the manifest does not list it" in said
    assert "decode_64_rank3 holds no file of the bundle" in said


def test_a_bundle_that_was_copied_opens(bundle: Path) -> None:
    shutil.copytree(bundle, bundle.parent / "copy")
    assert open_bundle(bundle.parent / "copy").manifest == open_bundle(bundle).manifest
