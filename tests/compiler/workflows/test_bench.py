"""Figures of a tiny bundle: their structure, and that they agree with each other. No times."""

from pathlib import Path

import pytest
from built_bundles import BuiltBundles, TinyModel

from compiler.contracts.errors import BundleError, ConfigError, RunError, TargetError
from compiler.measuring import Wanted
from compiler.workflows.bench import BenchRequest, BenchResult, bench, usual_lengths

ONCE = Wanted(blocks=1, seconds=0.0, attempts=1, pause=0.0)


def measure(bundle: Path, *lengths: int, has_profile: bool = False) -> BenchResult:
    request = BenchRequest(prompt_tokens=lengths, threads=1, has_profile=has_profile, wanted=ONCE)
    return bench(bundle, request)


@pytest.fixture(scope="module")
def found(built_bundles: BuiltBundles) -> BenchResult:
    return measure(built_bundles.bundle(), 40, 5, has_profile=True)


def test_what_was_measured_is_named(found: BenchResult) -> None:
    assert (found.name, found.target, found.threads) == ("tiny", "tvm_llvm", 1)
    assert (found.window, found.context) == (32, 48)
    assert found.peak_resident_bytes > 10_000_000
    assert found.read_bandwidth > 1e7


def test_each_length_has_figures_that_agree(found: BenchResult) -> None:
    assert [one.prompt_tokens for one in found.lengths] == [5, 40]
    for one in found.lengths:
        assert one.prefill.ms > 0
        assert one.decode is not None
        assert one.bytes_per_token is not None
        assert one.floor_ms is not None
        assert one.floor_ms == pytest.approx(1000 * one.bytes_per_token / found.read_bandwidth)
        assert one.over_floor == pytest.approx(one.decode.ms / one.floor_ms)
        assert one.decode_tokens_per_second == pytest.approx(1000 / one.decode.ms)
    first, second = (one.bytes_per_token for one in found.lengths)
    assert (second or 0) - (first or 0) == 35 * 2 * 2 * 2 * 16 * 4


def test_kernels_and_the_machine_make_up_the_call(found: BenchResult) -> None:
    assert [(one.phase, one.prompt_tokens) for one in found.profiles] == [
        ("prefill", 40),
        ("decode", 40),
    ]
    for profile in found.profiles:
        kernels = sum(row.ms for row in profile.kernels)
        assert kernels + profile.virtual_machine_ms == pytest.approx(profile.ms)
        shares = sum(row.share for row in profile.kernels)
        assert shares + profile.virtual_machine_ms / profile.ms == pytest.approx(1)
        assert [row.ms for row in profile.kernels] == sorted(
            (row.ms for row in profile.kernels), reverse=True
        )
        for row in profile.kernels:
            assert row.floor_ms == pytest.approx(1000 * row.moved_bytes / found.read_bandwidth)
            assert row.over_floor is not None
            assert row.over_floor == pytest.approx(row.ms / row.floor_ms)


@pytest.mark.parametrize(
    ("window", "lengths"), [(32, (32,)), (128, (128,)), (144, (128, 144)), (1024, (128, 1024))]
)
def test_usual_lengths(window: int, lengths: tuple[int, ...]) -> None:
    assert usual_lengths(window) == lengths


def test_nothing_is_profiled_unasked(built_bundles: BuiltBundles) -> None:
    found = measure(built_bundles.bundle())
    assert [one.prompt_tokens for one in found.lengths] == [32]
    assert found.profiles == ()


def test_a_full_context_has_no_next_token(built_bundles: BuiltBundles) -> None:
    (one,) = measure(built_bundles.bundle(), 48).lengths
    assert (one.decode, one.decode_tokens_per_second, one.floor_ms) == (None, None, None)


def test_a_bundle_without_decode(built_bundles: BuiltBundles) -> None:
    bundle = built_bundles.bundle(TinyModel(name="prefill-only", context=None))
    found = measure(bundle, has_profile=True)
    assert [one.decode for one in found.lengths] == [None]
    assert [one.phase for one in found.profiles] == ["prefill"]


def test_ranks_have_figures_and_no_profile(built_bundles: BuiltBundles) -> None:
    bundle = built_bundles.bundle(TinyModel(name="two", ways=2))
    (one,) = measure(bundle).lengths
    assert one.decode is not None
    with pytest.raises(TargetError, match="does not time its kernels") as refused:
        measure(bundle, has_profile=True)
    assert refused.value.hint == "measure without --profile"


def test_several_prompts_at_once_have_figures_and_no_profile(built_bundles: BuiltBundles) -> None:
    bundle = built_bundles.bundle(TinyModel(name="batch", batch=2))
    (one,) = measure(bundle).lengths
    assert one.decode is not None
    with pytest.raises(TargetError, match="several prompts"):
        measure(bundle, has_profile=True)


def test_what_cannot_be_measured(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built_bundles.bundle()
    with pytest.raises(BundleError, match="there is no bundle"):
        measure(tmp_path)
    with pytest.raises(RunError, match="49 tokens does not fit the context of 48"):
        measure(bundle, 49)
    with pytest.raises(ConfigError, match="--prompt-tokens is 0"):
        measure(bundle, 0)
    with pytest.raises(RunError, match="threads is 0"):
        bench(bundle, BenchRequest(threads=0))
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**launched, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one process"):
        measure(bundle)
