"""Bundles with KV caches of 16 bits and int8, against onnxruntime on the same program."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
from built_bundles import BuiltBundles, TinyModel, in_this_process
from staged_models import observed

from compiler.config import BuildConfig, load_config
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Tap
from compiler.stages.open_bundle import open_bundle
from compiler.stages.semantic import check_semantics
from compiler.workflows.build import build
from compiler.workflows.comparing.targets import TargetChoice, TargetOpener
from compiler.workflows.frontend import locate
from targets.llvm.runner import LLVMRunner
from targets.llvm.target import LLVMTarget

pytestmark = pytest.mark.slow

MODEL = TinyModel("narrow", hidden=60, heads=6, kv_heads=2, head_dim=20)
TOKENS = np.random.default_rng(8).integers(0, MODEL.vocabulary, 46).tolist()
# One step of a row's largest entry: what a code, or a last bit, that falls the other way is worth.
STEP = {"int8": 1 / 127, "bfloat16": 2.0**-7}


@pytest.fixture(scope="module", params=list(STEP))
def narrow(
    request: pytest.FixtureRequest,
    built_bundles: BuiltBundles,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, BuildConfig, LLVMRunner]]:
    """The caches' dtype, the configuration, and its bundle, built with every check and opened."""
    folder = tmp_path_factory.mktemp("narrow")
    tree = json.loads(built_bundles.yaml(MODEL).read_text(encoding="utf-8"))
    tree["passes"] = {"add": [{"store-kv-cache": {"dtype": request.param}}]}
    tree["verify"] = "probe"
    tree["workspace"] = {"path": str(folder / "workspace")}
    yaml = folder / "model.yaml"
    yaml.write_text(json.dumps(tree), encoding="utf-8")
    config = load_config(yaml)
    with in_this_process():
        bundle = build(config).bundle
    runner = LLVMTarget().open(open_bundle(bundle))
    assert isinstance(runner, LLVMRunner)
    yield request.param, config, runner
    runner.close()


def rows_of(runner: Runner, length: int) -> list[np.ndarray]:
    return [
        rows.reshape(length, MODEL.kv_heads, 20)
        for layer in range(MODEL.layers)
        for rows in runner.cache_rows(layer, 0, length)
    ]


def test_it_is_what_onnxruntime_computes(narrow: tuple[str, BuildConfig, LLVMRunner]):
    """To 1e-4 where both round alike; a row may be off by a step, and then what follows from it."""
    dtype, config, runner = narrow
    with in_this_process():
        opener = TargetOpener(config, locate(config, progress=Progress()), Progress())
        reference = opener.open(TargetChoice("onnxruntime"))
    runner.rewind(0)
    for begin, end in ((0, 40), (40, 41), (41, 45), (45, 46)):
        found, wanted = (one.extend(TOKENS[begin:end]) for one in (runner, reference))
        pairs = list(zip(rows_of(runner, end), rows_of(reference, end), strict=True))
        is_equal = True
        for ours, theirs in pairs:
            scale = np.abs(theirs).max(axis=-1, keepdims=True)
            off = np.abs(ours - theirs) / scale
            assert off.max() <= STEP[dtype] * 1.001
            assert (off > 1e-4).mean() < 0.01
            is_equal = is_equal and bool((off <= 1e-4).all())
        allowed = 1e-4 if is_equal else STEP[dtype]
        assert np.abs(found - wanted).max() <= allowed * max(1.0, np.abs(wanted).max())
    reference.close()


def test_taps_are_rows_as_attention_reads_them_and_before_they_are_rounded(
    narrow: tuple[str, BuildConfig, LLVMRunner],
):
    dtype, config, runner = narrow
    with in_this_process():
        opener = TargetOpener(config, locate(config, progress=Progress()), Progress())
        reference = opener.open(TargetChoice("onnxruntime"))
    runner.rewind(0)
    for begin, end in ((0, 20), (20, 21)):
        (logits, found), (_, wanted) = (
            observed(one, TOKENS[begin:end]) for one in (runner, reference)
        )
        assert set(found) == set(wanted)
        for tap, rows in wanted.items():
            limit = STEP[dtype] if tap.layer else 1e-4
            if tap.point in ("keys", "values"):
                limit = STEP[dtype] * np.abs(rows).max()
                kept = runner.cache_rows(tap.layer or 0, begin, end)
                np.testing.assert_array_equal(found[tap], kept[tap.point == "values"])
            assert np.abs(found[tap] - rows).max() <= max(limit, 1e-4), str(tap)
        # Watching changes no bit.
        runner.rewind(begin)
        np.testing.assert_array_equal(runner.extend(TOKENS[begin:end]), logits)
    reference.close()


@pytest.mark.parametrize("point", ["keys", "values"])
def test_forced_rows_are_rounded_into_the_cache(
    narrow: tuple[str, BuildConfig, LLVMRunner], point: str
):
    dtype, _, runner = narrow
    runner.rewind(0)
    plain = runner.extend(TOKENS[:20])
    forced = np.random.default_rng(3).standard_normal((20, 40), dtype=np.float32)
    for earlier in (0, 1):
        runner.rewind(0)
        logits, _ = observed(runner, TOKENS[:20], {Tap(earlier, point): forced})
        kept = runner.cache_rows(earlier, 0, 20)[point == "values"]
        heads = forced.reshape(20, 2, 20)
        size = np.abs(heads).max(axis=-1, keepdims=True)
        off = np.abs(kept.reshape(heads.shape) - heads)
        assert (off <= size * STEP[dtype] * 0.501).all()
        assert off.max() > 0
        assert np.abs(logits - plain).max() > 1e-3


def test_semantics_hold(narrow: tuple[str, BuildConfig, LLVMRunner]):
    """To the bit where the same calls are made, and to a step where other kernels sum."""
    dtype, _, runner = narrow
    runner.rewind(0)
    checks = check_semantics(runner, window=MODEL.window, seed=0, limit=STEP[dtype])
    found = {check.name: (check.status, check.said) for check in checks}
    assert {name: said for name, said in found.items() if said[0] == "fail"} == {}
    names = ("causality", "prefill-decode", "window-split", "padding", "reset")
    assert [found[name][0] for name in names] == ["pass"] * len(names)


def test_the_bundle_holds_as_many_bytes_as_it_says(narrow: tuple[str, BuildConfig, LLVMRunner]):
    dtype, config, runner = narrow
    assert MODEL.context is not None
    slots = MODEL.context * MODEL.kv_heads
    side = slots * (20 + 4) if dtype == "int8" else slots * 20 * 2
    found = {
        name: prod(tensor.shape) * np.dtype(str(tensor.dtype)).itemsize
        for name, tensor in runner._caches.items()
    }
    assert sum(found.values()) == 2 * MODEL.layers * side
    assert runner.layers == MODEL.layers
    bundle = Path(config.workspace_path, config.name)
    modules = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["modules"]
    for module in modules:
        caches = {one["name"]: one for one in module["inputs"] if one["name"] in found}
        assert set(module["aliases"].values()) == set(found) == set(caches)
        assert caches["past_key_values.0.key"]["dtype"] == dtype


def test_what_is_rewound_is_forgotten(narrow: tuple[str, BuildConfig, LLVMRunner]):
    _, _, runner = narrow
    runner.rewind(0)
    runner.extend(TOKENS[:40])
    runner.rewind(7)
    found = runner.extend(TOKENS[20:25])
    runner.rewind(0)
    runner.extend(TOKENS[:40])
    runner.rewind(7)
    np.testing.assert_array_equal(runner.extend(TOKENS[20:25]), found)
