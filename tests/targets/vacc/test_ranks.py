"""Several ranks in the emulator: one rank's logits, torch's tokens, and the weights cut up."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import TinyModel
from stored_weights_model import LIMIT, torch_logits, torch_model
from vacc_bundles import VaccBundles, VaccModel

from compiler.contracts.bundle import PARAMS_FOLDER, Bundle
from compiler.contracts.errors import TargetError
from compiler.ranks.exchange import Exchange
from compiler.ranks.launch import open_ranks
from compiler.relax.parameters import map_parameters
from compiler.stages.execute import GenerateOptions, Generation
from compiler.workflows.run import open_session
from targets.vacc.driver import LoadedPartition
from targets.vacc.emulator import EmulatedPartition, Emulator
from targets.vacc.runner import VaccRunner

pytestmark = pytest.mark.slow

# A vocabulary that is no multiple of 16, and of 16 to a rank far from one.
EIGHT = TinyModel(
    name="eight", hidden=256, heads=16, kv_heads=8, intermediate=128, vocabulary=120, layers=1
)
TWO = replace(EIGHT, name="two", kv_heads=2)
# Longer than the window of 32: a whole one, and one that is padded.
PROMPT = tuple(7 * index % 113 for index in range(37))
OPTIONS = GenerateOptions(max_tokens=5, keep_logits=True)


def ranked(model: TinyModel, ways: int, *, quantized: str = "") -> VaccModel:
    """Key heads are aligned where they do not divide."""
    is_aligned = model.kv_heads % ways != 0
    return VaccModel(
        replace(model, ways=ways, align_qkv=is_aligned),
        quantize=json.dumps({"type": quantized}) if quantized else "",
        verify="probe" if ways == 2 else "off",
    )


def answered(bundle: Bundle) -> Generation:
    with open_session(bundle.path) as session:
        return session.complete(PROMPT, OPTIONS)


def assert_close(found: Generation, wanted: Generation) -> None:
    """Equal tokens, and logits within float16's rounding of what a layer leaves."""
    assert found.tokens == wanted.tokens
    assert found.logits is not None
    assert wanted.logits is not None
    largest = np.abs(wanted.logits).max()
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=LIMIT * largest)


@pytest.mark.parametrize(
    ("model", "ways"),
    [(EIGHT, (1, 2, 4, 8)), (TWO, (1, 4, 8))],
    ids=["8 key heads", "2 key heads, aligned"],
)
def test_logits_are_one_ranks_and_tokens_are_torchs(
    vacc_bundles: VaccBundles, model: TinyModel, ways: tuple[int, ...]
) -> None:
    reference = torch_model(vacc_bundles.checkpoint(model))
    alone, *several = [answered(vacc_bundles.bundle(ranked(model, one))) for one in ways]
    wanted = torch_logits(reference, [*PROMPT, *alone.tokens])[len(PROMPT) - 1 : -1]
    assert alone.tokens == tuple(wanted.argmax(1))
    assert alone.logits is not None
    np.testing.assert_allclose(alone.logits, wanted, rtol=0, atol=LIMIT * np.abs(wanted).max())
    for found in several:
        assert_close(found, alone)


@pytest.mark.parametrize("quantized", ["w8a16", "w8a16_gptq"])
def test_int8_ranks_say_what_one_rank_says(vacc_bundles: VaccBundles, quantized: str) -> None:
    one, two = (vacc_bundles.bundle(ranked(EIGHT, ways, quantized=quantized)) for ways in (1, 2))
    assert_close(answered(two), answered(one))
    assert_weights_are_cut(one, two)


def parameters(bundle: Bundle, rank: int) -> Mapping[str, np.ndarray]:
    entry = bundle.module("decode", rank=rank)
    assert entry is not None
    mapped = map_parameters(bundle.path / PARAMS_FOLDER / f"rank{rank}.safetensors")
    return {name: mapped[entry.stored[name]][0] for name in entry.params}


def assert_weights_are_cut(one: Bundle, several: Bundle) -> None:
    """Side by side the ranks' weights are the whole: rows, or columns where ranks are summed."""
    shares = [parameters(several, rank) for rank in range(several.ranks)]
    cut = 0
    for name, whole in parameters(one, 0).items():
        parts = [share[name] for share in shares]
        if all(part.shape == whole.shape for part in parts):
            assert all(np.array_equal(part, whole) for part in parts), name
            continue
        is_summed = any(f".{linear}_proj." in name for linear in ("o", "down"))
        joined = np.concatenate(parts, axis=1 if is_summed else 0)[: len(whole)]
        np.testing.assert_array_equal(joined, whole, err_msg=name)
        cut += 1
    # Seven linears, their scales but those of sums, three biases, and the head.
    assert cut == 11 + 5 * any(name.endswith("_scale") for name in shares[0])


def test_the_weights_of_all_ranks_are_the_whole(vacc_bundles: VaccBundles) -> None:
    one = vacc_bundles.bundle(ranked(EIGHT, 1))
    for ways in (2, 8):
        assert_weights_are_cut(one, vacc_bundles.bundle(ranked(EIGHT, ways)))


def folder_of(bundle: Bundle, rank: int = 0) -> Path:
    entry = bundle.module("decode", rank=rank)
    assert entry is not None
    return bundle.path / entry.folder


def test_ranks_meet_in_their_programs_and_are_counted(vacc_bundles: VaccBundles) -> None:
    bundle = vacc_bundles.bundle(ranked(EIGHT, 4))
    folders = [folder_of(bundle, rank) for rank in range(4)]
    (text,) = {(folder / "vacc_decode_0.tiles").read_text() for folder in folders}
    meets = [line.split(" (")[0] for line in text.splitlines() if " ways=" in line]
    assert meets == [
        "  all_reduce model.layers.0.self_attn.o_proj ways=4",
        "  all_reduce model.layers.0.mlp.down_proj ways=4",
        "  all_gather lm_head ways=4",
    ]
    covered = json.loads((folders[3] / "coverage.json").read_text())
    assert covered["flops"]["share"] == 1.0
    assert {one["reason"] for one in covered["host"]} == {"indices and positions are the host's"}
    found = json.loads((folders[3] / "estimate.json").read_text())["composites"]
    # A ring: three quarters of 256 values of two bytes, twice; of 32 logits, three times.
    assert found["all_reduce"]["linked_bytes"] == 2 * 2 * 256 * 2 * 3 // 4
    assert found["all_gather"]["linked_bytes"] == 3 * 32 * 4
    assert found["all_reduce"]["bound_by"] == "link"


class Alone(Emulator):
    """A driver that knows nothing of ranks."""

    def load(self, compiled: bytes, *, where: str) -> LoadedPartition:
        class One(LoadedPartition):
            def call(self, arguments, watch=None):
                raise AssertionError("it is not called")

        return One()


def test_what_cannot_meet_says_so(vacc_bundles: VaccBundles) -> None:
    bundle = vacc_bundles.bundle(ranked(EIGHT, 2))
    with pytest.raises(TargetError, match="the driver runs one rank, the bundle has 2"):
        open_ranks(
            bundle,
            lambda rank, collectives, *, threads: VaccRunner(
                bundle, rank=rank, driver=Alone(), collectives=collectives
            ),
        )
    with pytest.raises(TargetError, match="all_reduce waits for 2 ranks, and this partition runs"):
        VaccRunner(bundle).extend([1, 2])
    file = folder_of(bundle) / "vacc_decode_0.tiles"
    part = EmulatedPartition(file.read_text(encoding="utf-8"))
    with pytest.raises(TargetError, match="all_reduce is for 2 ranks, there are 3"):
        part.join(Exchange(3).of(0))
