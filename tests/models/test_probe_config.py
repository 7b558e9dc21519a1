"""The probe's configuration: small widths, and every length on the side where the model has it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from family_variants import VARIANTS
from program_runs import run_pass

from compiler.contracts.tensor_parallel import kv_repeats
from compiler.contracts.weights import CheckpointRef, StoredTensor
from compiler.stages.trace import trace
from models.layer_types import FULL_ATTENTION, SLIDING_ATTENTION
from models.llama import Llama
from models.probe import ProbeLengths, probe_heads, probe_vocabulary
from models.qwen2 import Qwen2
from models.qwen3 import Qwen3
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask

LENGTHS = {"window": 16, "context": 48, "model_window": 512, "model_context": 4096}
CONFIG: Mapping[str, object] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
# What the model was trained at, and on which side of the probe's 16 and 48 that must be: a padded
# window may begin at the last position, so rows go to 512 + 4096 - 2.
SIDES = [(1, 9), (511, 9), (512, 32), (4095, 32), (4096, 56), (4606, 56), (4607, 64), (10**6, 64)]


def probe(family: Qwen2, config: Mapping[str, object]) -> dict[str, object]:
    assert family.violations(config) == []
    found = family.probe_config(config, **LENGTHS)
    assert family.violations(found) == []
    assert len(family.layer_kinds(found)) == config["num_hidden_layers"]
    assert family.layer_kinds(found) == family.layer_kinds(config)
    assert set(family.tensors(found)) == set(family.tensors(config))
    assert {k: len(v) for k, v in family.buffers(found).items()} == dict.fromkeys(
        family.buffers(config), 4
    )
    return found


@pytest.mark.parametrize(("length", "wanted"), SIDES)
def test_lengths_keep_their_side(length: int, wanted: int):
    assert ProbeLengths(**LENGTHS).of(length) == wanted


def test_prefill_alone_has_its_window_as_context():
    lengths = ProbeLengths(window=16, context=16, model_window=512, model_context=512)
    assert [lengths.of(length) for length in (511, 512, 1022, 1023)] == [9, 24, 24, 32]


def test_widths():
    found = probe(Qwen2(), CONFIG)
    kept = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    assert {key: found[key] for key in kept} == {
        **kept,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_attention_heads": 6,
        "vocab_size": 48,
    }
    assert Qwen2().rope(found).theta == 1e6


def test_groups_and_the_vocabulary_are_kept():
    single = {**CONFIG, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 130}
    assert Qwen2().cache_shape(probe(Qwen2(), single)) == (2, 8)
    found = probe(Qwen2(), single)
    assert (found["num_attention_heads"], found["vocab_size"]) == (2, 50)
    own = probe(Qwen3(), {**CONFIG, "model_type": "qwen3", "head_dim": 128})
    assert own["hidden_size"] != 6 * 8
    assert probe(Llama(), {**CONFIG, "attention_bias": True})["attention_bias"] is True


@pytest.mark.parametrize(("length", "wanted"), SIDES)
def test_a_sliding_window_is_brought_along(length: int, wanted: int):
    config = {
        **CONFIG,
        "use_sliding_window": True,
        "sliding_window": length,
        "max_window_layers": 20,
    }
    found = probe(Qwen2(), config)
    assert found["sliding_window"] == wanted
    kinds = Qwen2().layer_kinds(found)
    assert (kinds.count(FULL_ATTENTION), kinds.count(SLIDING_ATTENTION)) == (20, 4)


def test_the_default_window_is_written_out():
    assert probe(Qwen2(), {**CONFIG, "use_sliding_window": True})["sliding_window"] == 56


@pytest.mark.parametrize(("length", "wanted"), [side for side in SIDES if side[0] > 1])
def test_trained_lengths_are_brought_along(length: int, wanted: int):
    logn = {**CONFIG, "use_logn_attn": True, "seq_length": length}
    assert probe(Qwen2(), logn)["seq_length"] == wanted
    rope = {"type": "dynamic", "factor": 2.0}
    dynamic = {**CONFIG, "rope_scaling": rope, "max_position_embeddings": length}
    assert Qwen2().rope(probe(Qwen2(), dynamic)).trained == wanted
    factors = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    rope = {"type": "longrope", "original_max_position_embeddings": length, **factors}
    longrope = {**CONFIG, "rope_scaling": rope, "max_position_embeddings": 8 * length}
    assert Qwen2().rope(probe(Qwen2(), longrope)).trained == wanted


@pytest.mark.parametrize("factor", [1.0, 4.0, None])
@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_the_scale_of_cos_and_sin_is_kept(kind: str, factor: float | None):
    rope = {"type": kind, "factor": factor, "original_max_position_embeddings": 8192}
    rope |= {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    config = {**CONFIG, "rope_scaling": rope, "max_position_embeddings": 32768}
    before, after = Qwen2().rope(config), Qwen2().rope(probe(Qwen2(), config))
    assert (before.scaling, before.factor) == (after.scaling, after.factor)
    assert (before.scaling == 1.0) == (factor == 1.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_probe_of_a_probe_is_the_same(name: str):
    """Nothing is left that the next reading would take from elsewhere."""
    family = Qwen3() if "qwen3" in name else Qwen2()
    config = {**CONFIG, "head_dim": 16, **VARIANTS[name][1]}
    if "layer_types" in config:
        config["num_hidden_layers"] = 2
    found = probe(family, config)
    again = {"window": 16, "context": 48, "model_window": 16, "model_context": 48}
    assert family.probe_config(found, **again) == found


def folded(family: Qwen2, config: Mapping[str, object], *, window: int, context: int) -> list[str]:
    """What fold-mask did to each phase: its rewrites, and of each node all but dimensions."""
    tensors = {
        name: StoredTensor(Path("/nowhere/model.safetensors"), 0, shape, "float32")
        for name, shape in family.tensors(config).items()
    }
    checkpoint = CheckpointRef(Path("/nowhere"), config, tensors, digest="")
    found: list[str] = []
    for program in trace(family, checkpoint, window=window, context=context):
        run_pass(FoldConstants(), program)
        report = run_pass(FoldMask(), program)
        assert report.skips == ()
        found += [program.phase, *report.rewrites]
        for node in program.graph.nodes:
            reads = [tensor.name for tensor in node.inputs]
            window_of_it = bool(node.attrs.get("window", 0))
            found.append(f"{node.name} {node.op} {reads} {window_of_it}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("sliding", 60),
        # Past the context: only padding of prefill reaches it, or nothing does.
        ("sliding", 100),
        ("sliding", 200),
        ("dynamic", 60),
    ],
)
def test_a_pass_does_the_same_to_model_and_probe(name: str, length: int):
    keys = {"sliding": "sliding_window", "dynamic": "max_position_embeddings"}
    plain = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 16}
    config = {**CONFIG, **plain, "intermediate_size": 72, **VARIANTS[name][1], keys[name]: length}
    small = Qwen2().probe_config(config, window=16, context=48, model_window=32, model_context=96)
    wanted = folded(Qwen2(), config, window=32, context=96)
    assert folded(Qwen2(), small, window=16, context=48) == wanted
    windows = [line.endswith("True") for line in wanted if "CausalMask" in line.split()]
    reached = {60: [True, True], 100: [True, False], 200: [False, False]}
    if name == "sliding":
        # A full and a sliding layer, in prefill and in decode.
        assert windows == [False, reached[length][0], False, reached[length][1]]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ways", "wanted"),
    [
        (16, 8, 1, (2, 2)),
        (16, 8, 4, (8, 2)),
        (32, 16, 4, (8, 2)),
        (16, 2, 4, (2, 6)),
        (16, 2, 8, (2, 8)),
        (9, 3, 3, (3, 3)),
        (24, 6, 4, (2, 4)),
        (7, 1, 7, (1, 7)),
    ],
)
def test_ranks_divide_the_probe_as_they_do_the_model(
    heads: int, kv_heads: int, ways: int, wanted: tuple[int, int]
):
    probe_kv_heads, group = probe_heads(heads, kv_heads, ways)
    assert (probe_kv_heads, group) == wanted
    assert kv_repeats(probe_kv_heads, ways) == kv_repeats(kv_heads, ways)
    assert probe_kv_heads * group % ways == 0


@pytest.mark.parametrize(("vocabulary", "ways"), [(151936, 8), (49152, 3), (151936, 3), (151, 5)])
def test_the_probe_s_vocabulary_divides_as_the_model_s(vocabulary: int, ways: int):
    found = probe_vocabulary(vocabulary, 48, ways)
    assert 48 <= found < 48 + 16 * ways
    assert (found % 16, found % ways) == (vocabulary % 16, vocabulary % ways)


@pytest.mark.parametrize("ways", [3, 7, 8])
def test_the_probe_s_channels_divide(ways: int):
    found = Qwen2().probe_config(CONFIG, **LENGTHS, ways=ways)["intermediate_size"]
    assert found in range(40, 40 + ways)
    assert isinstance(found, int)
    assert found % ways == 0
