"""Forms of `frontend.quantize`, from the YAML: wholly on the device, with their programs' logits.

The program is run by onnxruntime in float32; the device stores what leaves a composite in float16.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import in_this_process
from vacc_bundles import TINY, VaccBundles, VaccModel

from compiler.contracts.progress import Progress
from compiler.contracts.taps import Observer, Tap
from compiler.workflows.comparing.targets import TargetChoice, TargetOpener
from compiler.workflows.frontend import locate
from targets.vacc.runner import VaccRunner

pytestmark = pytest.mark.slow

PROMPT = [7 * index % 113 for index in range(37)]
# As in test_runner: ten roundings to float16 a layer.
LIMIT = 8 * 2.0**-11
# Where what is rounded to int8 was rounded to float16 before, a code may tip over: a step of 127.
STEP = 4 / 127
TIED = replace(TINY, tied=True)
STRICT = (("strict", True),)
CACHED = VaccModel(quantize='{"type": "w16kv8"}', compiled=STRICT)
FORMS = {
    "w8a16_gptq, the tied head": (
        VaccModel(TIED, quantize='{"type": "w8a16_gptq", "include": ["lm_head"]}', compiled=STRICT),
        LIMIT,
    ),
    "w8a16, 4 bits in groups, the tied head": (
        VaccModel(
            TIED,
            quantize='{"type": "w8a16", "include": ["lm_head"],'
            ' "calib_args": {"bits": 4, "group_size": 16}}',
            compiled=STRICT,
        ),
        LIMIT,
    ),
    "w16kv8": (CACHED, STEP),
    "w8a8, joined projections": (
        VaccModel(added=("fuse-qkv", "fuse-gate-up"), quantize='{"type": "w8a8"}', compiled=STRICT),
        STEP,
    ),
    "the accelerator's own operator": (
        VaccModel(added=('{"annotate-int8-qdq": {"operator": "vastai"}}',), compiled=STRICT),
        LIMIT,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """GPTQ's codes are chosen once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHLOWER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def text_of(vacc_bundles: VaccBundles, built: VaccModel) -> str:
    folder = vacc_bundles.bundle(built).path / "decode_48_rank0"
    return (folder / "vacc_decode_0.tiles").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_a_form_runs_on_the_device_and_gives_its_programs_logits(
    vacc_bundles: VaccBundles, tmp_path: Path, form: str
) -> None:
    built, limit = FORMS[form]
    bundle = vacc_bundles.bundle(built)
    for phase in ("prefill", "decode"):
        entry = bundle.module(phase)
        assert entry is not None
        coverage = entry.target["coverage"]
        assert isinstance(coverage, dict)
        assert coverage["flops"]["share"] == 1.0
        assert len(list((bundle.path / entry.folder).glob("*.tiles"))) == 1
    config = vacc_bundles.config(tmp_path / "model.yaml", built)
    opener = TargetOpener(config, locate(config, progress=Progress()), Progress())
    with in_this_process():
        program = opener.open(TargetChoice("onnxruntime"))
    ours = VaccRunner(bundle)
    for tokens in (PROMPT, [5], [8]):
        wanted, found = program.extend(tokens), ours.extend(tokens)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=limit * np.abs(wanted).max())


def test_codes_are_stored_as_codes(vacc_bundles: VaccBundles) -> None:
    gptq = text_of(vacc_bundles, FORMS["w8a16_gptq, the tied head"][0])
    assert len(re.findall(r"  weight i8\[\d+,\d+\] ", gptq)) == 7 * 2 + 2
    assert not re.findall(r"  weight f16", gptq)
    grouped = text_of(vacc_bundles, FORMS["w8a16, 4 bits in groups, the tied head"][0])
    assert "  weight f32[96,4] model.layers.0.mlp.up_proj.weight_scale\n" in grouped
    cached = text_of(vacc_bundles, CACHED)
    assert "  state i8[48,2,16] past_key_values.1.value\n" in cached
    assert "  state f32[48,2,1] past_key_values.1.value_scale\n" in cached
    assert not re.findall(r"  state f16", cached)


class Watching(Observer):
    """Keeps what it sees; puts other values in place of one tap."""

    def __init__(self, replaced: Tap | None = None) -> None:
        self.seen: dict[Tap, np.ndarray] = {}
        self.replaced = replaced

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        self.seen[tap] = rows.copy()
        return 3 * rows[:, ::-1] if tap == self.replaced else None


def rounded(rows: np.ndarray) -> np.ndarray:
    """Each head of 16 entries to its nearest codes and back."""
    heads = rows.reshape(len(rows), -1, 16)
    scales = np.abs(heads).max(axis=-1, keepdims=True) / np.float32(127)
    return (np.round(heads / scales) * scales).reshape(rows.shape)


def test_attention_reads_what_the_cache_has_rounded(vacc_bundles: VaccBundles) -> None:
    runner = VaccRunner(vacc_bundles.bundle(CACHED))
    plain = runner.extend(PROMPT[:9])
    runner.rewind(0)
    assert not runner.cache_rows(1, 0, 9)[0].any()
    watching = Watching()
    runner.observe(watching)
    np.testing.assert_array_equal(runner.extend(PROMPT[:9]), plain)
    for point, source in (("keys", "k_rot"), ("values", "v")):
        for layer in range(2):
            found = watching.seen[Tap(layer, point)]
            np.testing.assert_array_equal(found, rounded(watching.seen[Tap(layer, source)]))
            np.testing.assert_array_equal(found, runner.cache_rows(layer, 0, 9)[point == "values"])


def test_what_replaces_a_cached_row_is_rounded_again(vacc_bundles: VaccBundles) -> None:
    runner = VaccRunner(vacc_bundles.bundle(CACHED))
    plain = Watching()
    runner.observe(plain)
    runner.extend(PROMPT[:9])
    runner.rewind(0)
    changed = Watching(Tap(0, "keys"))
    runner.observe(changed)
    runner.extend(PROMPT[:9])
    wanted = rounded(3 * plain.seen[Tap(0, "keys")][:, ::-1])
    np.testing.assert_array_equal(runner.cache_rows(0, 0, 9)[0], wanted)
    assert not np.array_equal(changed.seen[Tap(0, "attn")], plain.seen[Tap(0, "attn")])


def test_joined_projections_keep_their_taps(vacc_bundles: VaccBundles) -> None:
    built = FORMS["w8a8, joined projections"][0]
    text = text_of(vacc_bundles, built)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
        assert re.search(rf"  run move_\d+ model\.layers\.1\.{name} ", text), name
    runner = VaccRunner(vacc_bundles.bundle(built))
    watching = Watching()
    runner.observe(watching)
    runner.extend(PROMPT[:9])
    widths = {tap.point: rows.shape[1] for tap, rows in watching.seen.items() if tap.layer == 1}
    assert [widths[point] for point in ("q", "k", "v", "gate", "up")] == [64, 32, 32, 96, 96]
