"""A bundle on disk: what is in it, byte for byte, and that nothing half-written is ever seen."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from bundle_factory import make_checkpoint, make_draft, make_module, weight
from safetensors import safe_open

from compiler import atomic_folder, params_file
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import BundleError, CheckFailed, CheckpointError, MachineLacks
from compiler.contracts.progress import Progress
from compiler.contracts.weight_values import value
from compiler.contracts.weights import CheckpointRef, source, transpose
from compiler.stages.open_bundle import open_bundle
from compiler.stages.package import BundleDraft, existing_bundle, kept_bundle, package

PARAMS = "params/rank0.safetensors"


class Counter(Progress):
    """Keeps the last figure, and checks that it only grows."""

    def __init__(self) -> None:
        self.done = self.total = 0

    def update(self, done: int, total: int, unit: str) -> None:
        assert unit == "bytes"
        assert self.done <= done <= total
        self.done, self.total = done, total


class Interrupting(Progress):
    """Ctrl-C in the middle of the parameters."""

    def update(self, done: int, total: int, unit: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointRef:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def draft(tmp_path: Path) -> BundleDraft:
    return make_draft(tmp_path / "modules")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder to put bundles in."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def write(
    destination: Path, draft: BundleDraft, checkpoint: CheckpointRef, *, force: bool = False
) -> Bundle:
    return package(destination, draft, checkpoint, force=force, progress=Progress())


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_bundle_holds_modules_params_snapshots_and_the_tokenizers_files(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    bundle = write(place / "tiny", draft, checkpoint)
    assert sorted(content(place)) == [
        "tiny/config.json",
        "tiny/decode_32_rank0/module.so",
        "tiny/decode_32_rank0/notes/schedule.txt",
        "tiny/generation_config.json",
        "tiny/ir/decode/00_traced.onnx",
        "tiny/ir/prefill/00_traced.onnx",
        "tiny/manifest.json",
        "tiny/params/rank0.safetensors",
        "tiny/prefill_16_rank0/module.so",
        "tiny/prefill_16_rank0/notes/schedule.txt",
    ]
    assert bundle.path == place / "tiny"
    assert open_bundle(place / "tiny").manifest == bundle.manifest
    entry = bundle.module("decode")
    assert entry is not None
    assert (entry.folder, entry.tokens, entry.aliases) == ("decode_32_rank0", 1, {"k2": "k"})
    assert entry.target == {"entry": "main", "features": ["avx2"]}
    assert bundle.manifest.passes == draft.passes
    assert bundle.manifest.quantization == {"prefill": {"activations": "int8"}}
    assert bundle.manifest.sizes["ir/prefill/00_traced.onnx"] == 5


def test_every_expression_is_stored_once_whatever_reads_it(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    bundle = write(place / "tiny", draft, checkpoint)
    with safe_open(place / "tiny" / PARAMS, "numpy") as stored:
        names = [name for name in stored.keys() if not name.startswith("_padding")]  # noqa: SIM118
        assert sorted(names) == ["bias", "decode.proj", "embed", "norm"]
        for module in draft.modules:
            entry = bundle.module(module.phase)
            assert entry is not None
            for name in ("embed", f"{module.phase}.proj", "bias"):
                np.testing.assert_array_equal(
                    stored.get_tensor(entry.stored[name]),
                    value(module.weights[name], checkpoint.rows),
                )


def test_bfloat16_is_stored_as_it_is(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    write(place / "tiny", draft, checkpoint)
    header, data = read_params(place / "tiny" / PARAMS)
    start, end = header["norm"]["data_offsets"]
    found = np.frombuffer(data[start:end], ml_dtypes.bfloat16)
    expected = checkpoint.rows("norm.weight", 0, 6).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, expected)
    assert header["norm"]["dtype"] == "BF16"


def read_params(path: Path) -> tuple[dict[str, dict[str, list[int]]], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_tensors_are_aligned_and_leave_no_holes(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    write(place / "tiny", draft, checkpoint)
    raw = (place / "tiny" / PARAMS).read_bytes()
    header, data = read_params(place / "tiny" / PARAMS)
    assert (len(raw) - len(data)) % 4096 == 0
    spans = sorted((entry["data_offsets"], name) for name, entry in header.items())
    end = 0
    for (start, stop), name in spans:
        assert start == end, f"a hole before {name}"
        assert start % 64 == 0 or name.startswith("_padding.")
        end = stop
    assert end == len(data)
    assert sum(name.startswith("_padding.") for name in header) == 4


@pytest.mark.parametrize("limit", [1, 24, 100, 10**9])
def test_the_size_of_the_blocks_does_not_change_the_file(
    place: Path,
    draft: BundleDraft,
    checkpoint: CheckpointRef,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    write(place / "a", draft, checkpoint)
    whole = params_file.chunks
    monkeypatch.setattr(params_file, "chunks", lambda one, read: whole(one, read, limit=limit))
    write(place / "b", draft, checkpoint)
    assert content(place / "a") == content(place / "b")


def test_params_that_are_not_merged_have_a_file_for_each_phase_and_rank(
    place: Path, tmp_path: Path, checkpoint: CheckpointRef
) -> None:
    draft = make_draft(tmp_path / "m", ranks=2, merge_params=False)
    bundle = write(place / "tiny", draft, checkpoint)
    assert sorted(path.name for path in (place / "tiny/params").iterdir()) == [
        f"{phase}_rank{rank}.safetensors" for phase in ("decode", "prefill") for rank in (0, 1)
    ]
    for entry in open_bundle(place / "tiny").manifest.modules:
        assert set(entry.stored.values()) == {"embed", "norm", "bias", f"{entry.phase}.proj"}
        file = bundle.params_file(entry)
        assert file.name == f"{entry.phase}_rank{entry.rank}.safetensors"
        header, _ = read_params(file)
        named = {name for name in header if not name.startswith("_padding")}
        assert named == set(entry.stored.values())
        assert header["embed"]["shape"] == [50, 6]


def test_a_phases_own_parameters_that_are_missing_are_named(
    place: Path, tmp_path: Path, checkpoint: CheckpointRef
) -> None:
    write(place / "tiny", make_draft(tmp_path / "m", merge_params=False), checkpoint)
    (place / "tiny/params/decode_rank0.safetensors").unlink()
    with pytest.raises(BundleError, match=r": decode_rank0\.safetensors is missing"):
        open_bundle(place / "tiny")


def test_equal_names_of_unequal_weights_are_two_tensors(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    prefill, decode = draft.modules
    other = replace(decode, weights={**decode.weights, "embed": transpose(weight("embed.weight"))})
    bundle = write(place / "tiny", replace(draft, modules=(prefill, other)), checkpoint)
    header, _ = read_params(place / "tiny" / PARAMS)
    entry = bundle.module("decode")
    assert entry is not None
    assert header[entry.stored["embed"]]["shape"] == [6, 50]


def test_each_rank_has_its_own_parameters(
    place: Path, tmp_path: Path, checkpoint: CheckpointRef
) -> None:
    bundle = write(place / "tiny", make_draft(tmp_path / "modules", ranks=2), checkpoint)
    assert (place / "tiny/params/rank1.safetensors").is_file()
    entry = bundle.module("prefill", rank=1)
    assert entry is not None
    assert entry.folder == "prefill_16_rank1"


def test_snapshots_may_be_files_and_folders(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    (tmp_path / "ir").mkdir()
    (tmp_path / "ir" / "a.onnx").write_bytes(b"a")
    snapshots = {"prefill": tmp_path / "ir", "b/report.json": tmp_path / "ir" / "a.onnx"}
    write(place / "tiny", replace(draft, snapshots=snapshots), checkpoint)
    assert (place / "tiny/ir/prefill/a.onnx").read_bytes() == b"a"
    assert (place / "tiny/ir/b/report.json").read_bytes() == b"a"


def test_tokenizer_files_behind_links_are_copied(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    file = checkpoint.path / "config.json"
    file.rename(checkpoint.path / "blob")
    file.symlink_to("blob")
    write(place / "tiny", draft, checkpoint)
    assert not (place / "tiny/config.json").is_symlink()
    assert open_bundle(place / "tiny").manifest.name == draft.name


def test_progress_counts_the_bytes_of_the_parameters(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    counter = Counter()
    package(place / "tiny", draft, checkpoint, force=False, progress=counter)
    assert counter.done == counter.total == (place / "tiny" / PARAMS).stat().st_size


def test_two_builds_are_equal_to_the_byte_whatever_folder_umask_and_order(tmp_path: Path) -> None:
    found = []
    for folder, umask in ((tmp_path / "a", 0o022), (tmp_path / "deep" / "b", 0o077)):
        before = os.umask(umask)
        try:
            checkpoint = make_checkpoint(folder / "checkpoint")
            draft = make_draft(folder / "modules")
            config = dict(reversed(list(draft.config.items())))
            write(folder / "out" / "tiny", replace(draft, config=config), checkpoint)
        finally:
            os.umask(before)
        found.append(content(folder / "out"))
    assert found[0] == found[1]
    assert len(found[0]) == 10


def test_the_manifest_is_canonical_and_names_no_place(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    write(place / "tiny", draft, checkpoint)
    text = (place / "tiny" / "manifest.json").read_text(encoding="utf-8")
    tree = json.loads(text)
    assert text == json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert str(tmp_path) not in text
    assert "é" in text
    assert tree["schema_version"] == 1
    assert sorted(tree["files"]) == sorted(tree["sizes"])


def test_missing_parents_are_made(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    write(place / "x" / "y" / "tiny", draft, checkpoint)
    assert open_bundle(place / "x" / "y" / "tiny").manifest.digest == draft.digest


def assert_untouched(place: Path, act: Callable[[], object], error: type[BaseException]) -> str:
    """`act` fails and leaves everything below `place` as it was; what it said."""
    before = (sorted(place.rglob("*")), content(place))
    with pytest.raises(error) as caught:
        act()
    assert (sorted(place.rglob("*")), content(place)) == before
    return str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "x/y/tiny"])
def test_an_interrupt_leaves_nothing(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, name: str
) -> None:
    assert_untouched(
        place,
        lambda: package(place / name, draft, checkpoint, force=False, progress=Interrupting()),
        KeyboardInterrupt,
    )


def test_an_interrupt_leaves_the_bundle_that_was_to_be_replaced(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    write(place / "tiny", draft, checkpoint)
    other = replace(draft, digest="e" * 64)
    assert_untouched(
        place,
        lambda: package(place / "tiny", other, checkpoint, force=True, progress=Interrupting()),
        KeyboardInterrupt,
    )


def test_a_weight_file_that_became_shorter_is_an_error_and_leaves_nothing(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    os.truncate(checkpoint.path / "weights.bin", 1000)
    said = assert_untouched(
        place, lambda: write(place / "tiny", draft, checkpoint), CheckpointError
    )
    assert "shorter than when it was checked" in said
    assert "weights.bin" in said


def test_too_small_a_disk_is_said_with_both_figures_before_anything_is_written(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = make_module(place.parent / "large", "prefill")
    stored = source("huge", (1 << 20, 1 << 10), "float32")
    large = replace(large, params=("huge",), weights={"huge": stored})
    usage = shutil.disk_usage(place)
    asked: list[Path] = []

    def nearly_full(path: Path) -> object:
        asked.append(path)
        return type(usage)(usage.total, usage.total, 1_500_000_000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    said = assert_untouched(
        place,
        lambda: write(place / "x" / "y", replace(draft, modules=(large,)), checkpoint),
        MachineLacks,
    )
    assert "the bundle needs 4.30 GB of disk, 1.50 GB are free" in said
    assert asked == [place]


def test_a_disk_that_fills_up_is_said_and_left_clean(
    draft: BundleDraft, checkpoint: CheckpointRef, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    said = assert_untouched(place, lambda: write(place / "tiny", draft, checkpoint), MachineLacks)
    assert "the disk is full: No space left on device" in said


def make_file(path: Path) -> None:
    path.write_text("mine")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def make_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_file, "a file"),
        (make_folder, "a folder"),
        (Path.mkdir, "a folder"),
        (make_link, "a symbolic link"),
    ],
)
def test_what_is_not_a_bundle_is_never_replaced(
    place: Path,
    draft: BundleDraft,
    checkpoint: CheckpointRef,
    make: Callable[[Path], None],
    kind: str,
    force: bool,
) -> None:
    make(place / "tiny")
    said = assert_untouched(
        place, lambda: write(place / "tiny", draft, checkpoint, force=force), BundleError
    )
    assert f"{kind} is in the way that is not a bundle; it is never replaced" in said


def test_a_link_to_a_bundle_is_not_replaced_either(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    write(place / "real", draft, checkpoint)
    (place / "tiny").symlink_to("real")
    said = assert_untouched(
        place, lambda: write(place / "tiny", draft, checkpoint, force=True), BundleError
    )
    assert "a symbolic link is in the way" in said


def test_an_approved_bundle_was_whole_beside_its_place(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    seen: list[Bundle] = []

    def approve(bundle: Bundle) -> None:
        assert bundle.path.parent == place
        assert open_bundle(bundle.path, verify=True).manifest == bundle.manifest
        assert not (place / "b").exists()
        seen.append(bundle)

    written = package(
        place / "b", draft, checkpoint, force=False, progress=Progress(), approve=approve
    )
    assert [bundle.manifest for bundle in seen] == [written.manifest]
    assert [path.name for path in place.iterdir()] == ["b"]
    assert open_bundle(place / "b").manifest == written.manifest


def test_a_bundle_that_is_kept_is_not_asked_about(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    def approve(bundle: Bundle) -> None:
        pytest.fail(f"asked about {bundle.path}")

    written = write(place / "b", draft, checkpoint)
    kept = package(
        place / "b", draft, checkpoint, force=False, progress=Progress(), approve=approve
    )
    assert kept.manifest == written.manifest


@pytest.mark.parametrize(
    "refusal", [CheckFailed("too bad"), KeyboardInterrupt(), FileNotFoundError(2, "of its own")]
)
def test_a_refused_bundle_leaves_the_disk_as_it_was(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, refusal: BaseException
) -> None:
    """Neither a new bundle, nor its parents, nor one in the place of another."""

    def refuse(bundle: Bundle) -> None:
        assert bundle.path.is_dir()
        raise refusal

    write(place / "b", replace(draft, digest="1" * 64), checkpoint)
    before = content(place)
    for destination in (place / "b", place / "new" / "c"):
        with pytest.raises(type(refusal)) as caught:
            package(destination, draft, checkpoint, force=True, progress=Progress(), approve=refuse)
        assert caught.value is refusal
        assert content(place) == before
        assert [path.name for path in place.iterdir()] == ["b"]


def test_a_file_in_the_place_of_a_parent_is_an_error(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    make_file(place / "x")
    said = assert_untouched(
        place, lambda: write(place / "x" / "tiny", draft, checkpoint), BundleError
    )
    assert "Not a directory" in said


def test_a_parent_that_cannot_be_written_is_an_error(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = assert_untouched(place, lambda: write(place / "tiny", draft, checkpoint), BundleError)
    assert "the bundle cannot be written: [Errno 13] Permission denied" in said


def test_existing_bundle(place: Path, draft: BundleDraft, checkpoint: CheckpointRef) -> None:
    assert existing_bundle(place / "tiny") is None
    bundle = write(place / "tiny", draft, checkpoint)
    assert existing_bundle(place / "tiny") == bundle


def test_kept_bundle(place: Path, draft: BundleDraft, checkpoint: CheckpointRef) -> None:
    assert kept_bundle(place / "tiny", draft.digest, force=False) is None
    bundle = write(place / "tiny", draft, checkpoint)
    assert kept_bundle(place / "tiny", draft.digest, force=False) == bundle
    assert kept_bundle(place / "tiny", draft.digest, force=True) is None
    assert kept_bundle(place / "tiny", "e" * 64, force=True) is None
    with pytest.raises(BundleError, match="another bundle is in the way"):
        kept_bundle(place / "tiny", "e" * 64, force=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"schema_version": 1', '"schema_version": 0', "schema version is 0"),
        ('"window": 16', '"window": 17', "manifest.json has been changed"),
    ],
)
def test_a_bundle_that_cannot_be_read_is_replaced_with_force_alone(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, old: str, new: str, said: str
) -> None:
    write(place / "tiny", draft, checkpoint)
    manifest = place / "tiny" / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    assert old in text
    manifest.write_text(text.replace(old, new), encoding="utf-8")
    refused = assert_untouched(place, lambda: write(place / "tiny", draft, checkpoint), BundleError)
    assert said in refused
    assert "replace it with --force" in refused
    write(place / "tiny", draft, checkpoint, force=True)
    assert open_bundle(place / "tiny").manifest.digest == draft.digest


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1, "name": "a web extension"}'])
def test_a_manifest_of_something_else_is_never_replaced(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef, text: str
) -> None:
    (place / "tiny").mkdir()
    (place / "tiny" / "manifest.json").write_text(text)
    said = assert_untouched(
        place, lambda: write(place / "tiny", draft, checkpoint, force=True), BundleError
    )
    assert "move it away" in said


def test_a_bundle_of_the_same_digest_is_kept(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    first = write(place / "tiny", draft, checkpoint)
    inode = (place / "tiny").stat().st_ino
    assert write(place / "tiny", replace(draft, name="other"), checkpoint) == first
    assert (place / "tiny").stat().st_ino == inode


def test_another_bundle_is_refused_without_force(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    write(place / "tiny", draft, checkpoint)
    other = replace(draft, digest="e" * 64)
    said = assert_untouched(place, lambda: write(place / "tiny", other, checkpoint), BundleError)
    assert "another bundle is in the way" in said
    assert "--force" in said


@pytest.mark.parametrize("has_renameat2", [True, False])
@pytest.mark.parametrize("digest", ["d" * 64, "e" * 64])
def test_force_replaces_a_bundle_and_leaves_nothing_of_it(
    place: Path,
    draft: BundleDraft,
    checkpoint: CheckpointRef,
    monkeypatch: pytest.MonkeyPatch,
    has_renameat2: bool,
    digest: str,
) -> None:
    if not has_renameat2:
        monkeypatch.setattr(atomic_folder, "_rename", lambda *_: False)
    write(place / "tiny", draft, checkpoint)
    write(place / "tiny", replace(draft, digest=digest, name="second"), checkpoint, force=True)
    assert open_bundle(place / "tiny").manifest.name == "second"
    assert [path.name for path in place.iterdir()] == ["tiny"]


def build_while_another_finishes(
    place: Path, first: BundleDraft, second: BundleDraft, checkpoint: CheckpointRef, *, force: bool
) -> Bundle:
    """`second` is being written when `first` arrives at the same place."""

    class Overtaken(Progress):
        is_done = False

        def update(self, done: int, total: int, unit: str) -> None:
            if not self.is_done:
                self.is_done = True
                write(place / "tiny", first, checkpoint)

    return package(place / "tiny", second, checkpoint, force=force, progress=Overtaken())


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_of_two_builds_of_the_same_the_first_stays_and_both_succeed(
    place: Path,
    draft: BundleDraft,
    checkpoint: CheckpointRef,
    monkeypatch: pytest.MonkeyPatch,
    has_renameat2: bool,
) -> None:
    if not has_renameat2:
        monkeypatch.setattr(atomic_folder, "_rename", lambda *_: False)
    late = replace(draft, name="late")
    bundle = build_while_another_finishes(place, draft, late, checkpoint, force=False)
    assert bundle.manifest.name == draft.name
    assert [path.name for path in place.iterdir()] == ["tiny"]


def test_of_two_builds_of_different_things_the_later_is_refused(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    other = replace(draft, digest="e" * 64)
    with pytest.raises(BundleError, match="another bundle is in the way"):
        build_while_another_finishes(place, draft, other, checkpoint, force=False)
    assert open_bundle(place / "tiny").manifest.digest == draft.digest
    assert [path.name for path in place.iterdir()] == ["tiny"]


def test_of_two_builds_the_later_wins_with_force(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    other = replace(draft, digest="e" * 64)
    build_while_another_finishes(place, draft, other, checkpoint, force=True)
    assert open_bundle(place / "tiny").manifest.digest == other.digest
    assert [path.name for path in place.iterdir()] == ["tiny"]


def test_many_builds_at_once_end_in_one_whole_bundle(
    place: Path, draft: BundleDraft, checkpoint: CheckpointRef
) -> None:
    start = threading.Barrier(4)
    found: list[Bundle] = []

    def build() -> None:
        start.wait()
        found.append(write(place / "tiny", draft, checkpoint))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(bundle == found[0] for bundle in found)
    assert open_bundle(place / "tiny") == found[0]
    assert [path.name for path in place.iterdir()] == ["tiny"]


MEMORY = """
import sys
from pathlib import Path
from dataclasses import replace
from compiler.contracts.progress import Progress
from compiler.contracts.weights import StoredTensor, CheckpointRef, cast, source
from compiler.stages.package import package
from bundle_factory import make_draft

folder, mib = Path(sys.argv[1]), int(sys.argv[2])
weights = folder / "weights.bin"
with weights.open("wb") as stream:
    stream.truncate(mib << 20)
shape = (mib << 9, 1024)
tensor = StoredTensor(weights, offset=0, shape=shape, dtype="bfloat16")
checkpoint = CheckpointRef(folder, {}, {"w": tensor}, digest="c" * 64)
draft = make_draft(folder / "modules")
module = replace(
    draft.modules[0], params=("w",), weights={"w": cast(source("w", shape, "bfloat16"), "float32")}
)
package(
    folder / "out", replace(draft, modules=(module,)), checkpoint, force=False, progress=Progress()
)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    peaks = []
    for mib in (64, 192):
        folder = tmp_path / str(mib)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(folder), str(mib)],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": f"{root}:{root / 'tests'}"},
        )
        assert done.returncode == 0, done.stderr
        assert (folder / "out" / PARAMS).stat().st_size > mib << 21
        peaks.append(int(done.stdout) / 1024)
        shutil.rmtree(folder)
    assert peaks[1] < peaks[0] + 8
    assert peaks[1] < 200
