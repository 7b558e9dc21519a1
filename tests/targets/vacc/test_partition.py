"""What goes to the device, what stays, and what is said of it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from built_bundles import in_this_process
from program_text import Golden
from vacc_bundles import FLOATS, INT8, TINY, VaccBundles, VaccModel

from compiler.contracts.errors import CompilerError
from compiler.workflows.build import build
from targets.vacc.device import COMPOSITES
from targets.vacc.tile_text import parse_tiles

pytestmark = pytest.mark.slow

# All that a Qwen2 leaves to the host: ids below zero, which count from the table's end, positions
# and their axes, and in prefill the last token's row, which is asked the same.
HOST = {
    "prefill": [
        "less bool[1, 32]",
        "add int64[1, 32]",
        "where int64[1, 32]",
        "add int64[32]",
        "expand_dims int64[1, 32]",
        "expand_dims int64[1, 32, 1]",
        "subtract int64[1]",
        "less bool[1]",
        "add int64[1]",
        "where int64[1]",
    ],
    "decode": [
        "less bool[1, 1]",
        "add int64[1, 1]",
        "where int64[1, 1]",
        "add int64[1]",
        "expand_dims int64[1, 1]",
        "expand_dims int64[1, 1, 1]",
    ],
}
ONE_LAYER = VaccModel(replace(TINY, layers=1, name="one"))


def facts(vacc_bundles: VaccBundles, built: VaccModel, phase: str) -> dict:
    entry = vacc_bundles.bundle(built).module(phase)  # type: ignore[arg-type]
    assert entry is not None
    return dict(entry.target)


def tiles(vacc_bundles: VaccBundles, built: VaccModel, phase: str) -> list[Path]:
    entry = vacc_bundles.bundle(built).module(phase)  # type: ignore[arg-type]
    assert entry is not None
    return sorted((vacc_bundles.bundle(built).path / entry.folder).glob("*.tiles"))


def test_the_partition_of_a_layer(vacc_bundles: VaccBundles, golden: Golden) -> None:
    (file,) = tiles(vacc_bundles, ONE_LAYER, "decode")
    text = file.read_text(encoding="utf-8")
    golden("one-layer-decode.tiles", text[text.index("program ") :])


@pytest.mark.parametrize("built", [FLOATS, INT8], ids=["fp16", "int8"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_qwen2_is_covered_but_for_its_indices(
    vacc_bundles: VaccBundles, built: VaccModel, phase: str
) -> None:
    covered = facts(vacc_bundles, built, phase)["coverage"]
    assert covered["flops"]["share"] == 1.0
    assert covered["flops"]["device"] > 100_000
    assert covered["host"] == [
        {
            "operator": f"relax.{operator}",
            "result": result,
            "reason": "indices and positions are the host's",
            "count": 1,
        }
        for operator, result in (entry.split(" ", 1) for entry in HOST[phase])
    ]
    assert covered["nodes"]["host"] == len(HOST[phase])
    assert covered["nodes"]["share"] > 0.9
    (file,) = tiles(vacc_bundles, built, phase)
    kinds = {kernel.composite for kernel in parse_tiles(file.read_text()).kernels}
    linears = {"quantized_linear"} if built is INT8 else {"linear"}
    apart = {"linear", "quantized_linear", "rounded_tokens"}
    assert kinds == set(COMPOSITES) - apart | linears


def lacking(*composites: str, **compiled: object) -> VaccModel:
    kept = tuple(name for name in COMPOSITES if name not in composites)
    return VaccModel(compiled=(("composites", kept), *compiled.items()))


def test_what_the_profile_lacks_falls_back_and_the_numbers_stay(vacc_bundles: VaccBundles) -> None:
    from targets.vacc.runner import VaccRunner

    whole = VaccRunner(vacc_bundles.bundle()).extend([3, 5, 8])
    for composite, operator in (("silu_mul", "relax.sigmoid"), ("attention", "relax.nn.softmax")):
        built = lacking(composite)
        covered = facts(vacc_bundles, built, "decode")["coverage"]
        assert 0.5 < covered["flops"]["share"] < 1
        assert operator in {one["operator"] for one in covered["host"]}
        found = VaccRunner(vacc_bundles.bundle(built)).extend([3, 5, 8])
        assert abs(found - whole).max() < 8e-3 * abs(whole).max()
    covered = facts(vacc_bundles, lacking("silu_mul"), "decode")["coverage"]
    reasons = {one["reason"] for one in covered["host"]}
    assert "the profile has no composite 'silu_mul'" in reasons


def test_strict_refuses_a_fallback_and_names_it(vacc_bundles: VaccBundles, tmp_path: Path) -> None:
    config = vacc_bundles.config(tmp_path / "model.yaml", lacking("silu_mul", strict=True))
    with in_this_process(), pytest.raises(CompilerError) as caught:
        build(config)
    said = str(caught.value)
    assert re.search(r"relax.multiply float32\[1, 32, 96\] falls back to the host: the prof", said)
    assert "relax.add int64" not in said
    assert not (tmp_path / "workspace" / "model").exists()
    assert facts(vacc_bundles, VaccModel(compiled=(("strict", True),)), "decode")


def test_a_small_chip_gives_the_same_numbers_by_more_tiles(vacc_bundles: VaccBundles) -> None:
    from targets.vacc.runner import VaccRunner

    small = VaccModel(compiled=(("onchip_bytes", 16384),))
    (few,), (many,) = tiles(vacc_bundles, FLOATS, "decode"), tiles(vacc_bundles, small, "decode")
    assert few.read_text() != many.read_text()
    whole = VaccRunner(vacc_bundles.bundle()).extend([3, 5, 8])
    found = VaccRunner(vacc_bundles.bundle(small)).extend([3, 5, 8])
    assert abs(found - whole).max() < 4e-3 * abs(whole).max()


def test_the_estimate_counts_what_the_model_multiplies(vacc_bundles: VaccBundles) -> None:
    bundle = vacc_bundles.bundle()
    entry = bundle.module("decode")
    assert entry is not None
    found = json.loads((bundle.path / entry.folder / "estimate.json").read_text())
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96
    assert found["composites"]["linear"]["multiply_adds"] == 2 * layer
    assert found["composites"]["head"]["multiply_adds"] == 64 * 128
    # Every position of the context, for four heads of 16: scores, and sums of values.
    assert found["composites"]["attention"]["multiply_adds"] == 2 * 2 * 48 * 64
    assert found["is_estimate"] is True
    total = found["total"]
    parts = found["composites"].values()
    assert total["estimated_seconds"] == pytest.approx(sum(p["estimated_seconds"] for p in parts))
    assert total["bound_by"] == "memory"
    assert total["memory_utilisation"] > 0.9
    # Each weight is read once.
    weights = 2 * 2 * layer
    assert weights < found["composites"]["linear"]["moved_bytes"] < 1.1 * weights
    assert found["call"] == {"past_length": 47, "valid_length": 1}


def test_equal_builds_are_equal_to_the_byte(vacc_bundles: VaccBundles, tmp_path: Path) -> None:
    config = vacc_bundles.config(tmp_path / "model.yaml")
    with in_this_process():
        again = build(config).bundle
    first = vacc_bundles.bundle()
    entry = first.module("decode")
    assert entry is not None
    for file in sorted((first.path / entry.folder).iterdir()):
        assert (again / entry.folder / file.name).read_bytes() == file.read_bytes(), file.name
