"""Taps are found at every point of the pipeline, and are what a model of numpy computes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from exported_models import VARIANTS, write_export
from program_runs import run_pass
from staged_models import POINTS, observed, staged
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler import registry
from compiler.config.pass_list import EXPORTED_PASSES
from compiler.contracts.program import Program
from compiler.contracts.taps import Tap, taps_of
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weights import DTYPES, CheckpointRef
from compiler.numerics.program_taps import program_taps
from compiler.stages.import_onnx import import_onnx, locate_onnx
from targets.onnxruntime.runner import OnnxRuntimeRunner

LAYERS = 2
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, 15).tolist()


def missing(program: Program) -> set[str]:
    """Points of a layer, or around them, that are not found."""
    return {tap.point for tap in taps_of(program.layers) if tap not in program_taps(program)}


def numpy_taps(checkpoint: CheckpointRef, tokens: Sequence[int]) -> dict[Tap, np.ndarray]:
    """Every tap of one call on an empty cache, of a Qwen2 in float64."""
    config = checkpoint.config
    heads, kv_heads = (
        int(str(config[key])) for key in ("num_attention_heads", "num_key_value_heads")
    )
    width, count = int(str(config["hidden_size"])) // heads, len(tokens)
    half = np.arange(0, width, 2) / width
    angles = np.outer(np.arange(count), float(str(config["rope_theta"])) ** -half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    logn_length = float(str(config["seq_length"])) if config.get("use_logn_attn") else np.inf
    growth = np.maximum(1.0, np.log(np.arange(1, count + 1)) / np.log(logn_length))
    found: dict[Tap, np.ndarray] = {}

    def tensor(name: str) -> np.ndarray:
        stored = checkpoint.tensors[name]
        return checkpoint.rows(name, 0, stored.shape[0]).astype(np.float64)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * tensor(f"{name}.weight")

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        has_bias = f"{name}.bias" in checkpoint.tensors
        return x @ tensor(f"{name}.weight").T + (tensor(f"{name}.bias") if has_bias else 0.0)

    def rotated(rows: np.ndarray) -> np.ndarray:
        x = rows.reshape(count, -1, width)
        first, second = x[..., : width // 2], x[..., width // 2 :]
        turned = (first * cos - second * sin, second * cos + first * sin)
        return np.concatenate(turned, axis=-1).reshape(count, -1)

    hidden = tensor("model.embed_tokens.weight")[list(tokens)]
    found[Tap(None, "embed")] = hidden
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        taps = {"norm1": norm(hidden, f"{path}.input_layernorm")}
        for one in "qkv":
            taps[one] = linear(taps["norm1"], f"{path}.self_attn.{one}_proj")
        taps["q_rot"], taps["k_rot"] = rotated(taps["q"]), rotated(taps["k"])
        taps["keys"], taps["values"] = taps["k_rot"], taps["v"]
        q = taps["q_rot"].reshape(count, heads, width) * growth[:, None, None]
        keys, values = (taps[n].reshape(count, kv_heads, width) for n in ("keys", "values"))
        attended = np.zeros((count, heads, width))
        for row in range(count):
            for head in range(heads):
                one = head // (heads // kv_heads)
                scores = keys[: row + 1, one] @ q[row, head] / np.sqrt(width)
                shares = np.exp(scores - scores.max())
                attended[row, head] = shares @ values[: row + 1, one] / shares.sum()
        taps["attn"] = attended.reshape(count, -1)
        taps["o"] = linear(taps["attn"], f"{path}.self_attn.o_proj")
        taps["resid1"] = hidden + taps["o"]
        taps["norm2"] = norm(taps["resid1"], f"{path}.post_attention_layernorm")
        taps["gate"] = linear(taps["norm2"], f"{path}.mlp.gate_proj")
        taps["up"] = linear(taps["norm2"], f"{path}.mlp.up_proj")
        taps["act"] = taps["gate"] / (1 + np.exp(-taps["gate"])) * taps["up"]
        taps["down"] = linear(taps["act"], f"{path}.mlp.down_proj")
        hidden = taps["resid2"] = taps["resid1"] + taps["down"]
        found |= {Tap(layer, point): rows for point, rows in taps.items()}
    found[Tap(None, "norm")] = norm(hidden, "model.norm")
    tied = "lm_head.weight" not in checkpoint.tensors
    head = tensor("model.embed_tokens.weight" if tied else "lm_head.weight")
    found[Tap(None, "logits")] = found[Tap(None, "norm")][-1:] @ head.T
    return found


@pytest.mark.parametrize("point", list(POINTS))
def test_no_built_in_pass_swallows_a_tap(traced_models: TracedModels, point: str):
    for name in ("gqa", "qwen3"):
        for program in staged(traced_models, name, POINTS[point]).programs:
            assert missing(program) == set()
            assert tuple(program_taps(program)) == taps_of(LAYERS)


@pytest.mark.parametrize("name", ["mha", "gqa", pytest.param("logn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", ["trace", "llvm", "all"])
def test_taps_are_what_numpy_computes(traced_models: TracedModels, name: str, point: str):
    """With LogN scaling q_rot is what the rotary gives, as transformers has it, unscaled."""
    model = staged(traced_models, name, POINTS[point])
    _, taps = observed(OnnxRuntimeRunner(model), TOKENS)

    wanted = numpy_taps(model.checkpoint, TOKENS)
    assert list(taps) == list(wanted) == list(taps_of(LAYERS))
    for tap, rows in taps.items():
        assert (tap, rows.dtype, rows.shape) == (tap, np.float32, wanted[tap].shape)
        np.testing.assert_allclose(rows, wanted[tap], rtol=0, atol=1e-5, err_msg=str(tap))


@pytest.mark.parametrize("name", ["qwen3", pytest.param("sliding", marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", ["fold-mask", "slice", "llvm", "all"])
def test_passes_keep_the_taps(traced_models: TracedModels, name: str, point: str):
    before, after = (
        OnnxRuntimeRunner(staged(traced_models, name, POINTS[p])) for p in ("trace", point)
    )
    for tokens in (TOKENS, TOKENS[:5], TOKENS[:1]):
        (_, wanted), (_, found) = observed(before, tokens), observed(after, tokens)
        assert list(found) == list(wanted)
        for tap, rows in found.items():
            np.testing.assert_allclose(rows, wanted[tap], rtol=0, atol=1e-5, err_msg=str(tap))


@pytest.mark.parametrize(
    ("point", "atol"),
    [
        ("int8", 0.2),
        ("float16", 0.03),
        ("bfloat16", 0.3),
        ("int8 cache", 0.1),
        ("bfloat16 cache", 0.1),
        ("packed int8", 0.2),
        ("packed bfloat16", 0.1),
    ],
)
def test_narrow_programs_show_every_tap_in_float32(
    traced_models: TracedModels, point: str, atol: float
):
    before, after = (
        OnnxRuntimeRunner(staged(traced_models, "gqa", POINTS[p])) for p in ("trace", point)
    )
    (_, wanted), (_, found) = observed(before, TOKENS), observed(after, TOKENS)
    assert list(found) == list(taps_of(LAYERS))
    for tap, rows in found.items():
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, wanted[tap], rtol=0, atol=atol, err_msg=str(tap))
    assert any((rows != wanted[tap]).any() for tap, rows in found.items())


@pytest.mark.parametrize("point", ["int8 cache", "int8 cache, unfused", "bfloat16 cache"])
def test_a_narrow_cache_shows_rows_before_rounding_and_as_attention_reads_them(
    traced_models: TracedModels, point: str
):
    before, after = (
        OnnxRuntimeRunner(staged(traced_models, "gqa", POINTS[p])) for p in ("trace", point)
    )
    (_, wanted), (_, found) = observed(before, TOKENS), observed(after, TOKENS)
    for name in ("q_rot", "k_rot"):
        np.testing.assert_allclose(found[Tap(0, name)], wanted[Tap(0, name)], rtol=0, atol=1e-5)
    for name in ("keys", "values"):
        off = np.abs(found[Tap(0, name)] - wanted[Tap(0, name)])
        # Half a step of the row's largest entry (gqa has one key head), or of the entry itself.
        sizes = np.abs(wanted[Tap(0, name)])
        is_int8 = point != "bfloat16 cache"
        step = sizes.max(axis=-1, keepdims=True) / 254 if is_int8 else sizes * 2.0**-8
        assert (off <= step * 1.01 + 1e-6).all()
        assert off.max() > 1e-4


def test_rounded_activations_are_shown_before_they_are_rounded(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["packed bfloat16"])
    _, found = observed(OnnxRuntimeRunner(model), TOKENS)
    for point in ("norm1", "q_rot", "attn", "norm2", "act"):
        rows = found[Tap(0, point)]
        share = (rows == rows.astype(DTYPES["bfloat16"]).astype(np.float32)).mean()
        assert share < 0.1, f"{point} is rounded"


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_of_exporters_have_every_tap(tmp_path: Path, variant: str):
    path = write_export(tmp_path / "model.onnx", variant)
    checkpoint = locate_onnx(path, window=WINDOW)
    seen: list[dict[Tap, np.ndarray]] = []
    fusions = ("fuse-qkv", "fuse-gate-up", "fuse-attention", "fuse-rms-norm", "store-weights")
    for names in ((), (*EXPORTED_PASSES, *fusions)):
        programs = import_onnx(path, checkpoint, window=WINDOW, context=CONTEXT)
        for program in programs:
            for one in (registry.load_pass(name)() for name in names):
                if program.phase in one.phases:
                    run_pass(one, program)
            assert missing(program) == set()
        runner = OnnxRuntimeRunner(ProgramModel(programs, checkpoint))
        seen.append(observed(runner, TOKENS)[1])
    for tap, rows in seen[0].items():
        np.testing.assert_allclose(seen[1][tap], rows, rtol=0, atol=1e-5, err_msg=str(tap))


def rename(graph: gs.Graph, op: str, other: str) -> None:
    """Every operator of a kind becomes one that nobody knows."""
    for node in graph.nodes:
        if node.op == op:
            node.op = other


@pytest.mark.parametrize(
    ("point", "op", "left_out"),
    [
        ("all", "Split", {"q", "k", "v", "gate", "up"}),
        ("llvm", "CacheUpdate", {"k_rot"}),
        ("llvm", "FusedAttention", {"q_rot"}),
        ("slice", "Transpose", {"q_rot"}),
    ],
)
def test_what_an_unknown_operator_swallowed_is_left_out(
    traced_models: TracedModels, point: str, op: str, left_out: set[str]
):
    for program in staged(traced_models, "gqa", POINTS[point]).programs:
        rename(program.graph, op, "Unknown")
        assert missing(program) == left_out


def test_a_split_of_other_lengths_is_not_guessed(traced_models: TracedModels):
    program = staged(traced_models, "gqa", POINTS["all"]).programs.programs["prefill"]
    for node in program.graph.nodes:
        if node.name == "model.layers.0.mlp.gate_up_proj/Split":
            node.inputs[1] = gs.Constant("other", np.array([30, 50], np.int64))
    left_out = {tap for tap in taps_of(LAYERS) if tap not in program_taps(program)}
    assert left_out == {Tap(0, "gate"), Tap(0, "up")}


def test_a_weight_that_two_products_read_is_no_module_s(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["prefill"]
    (product,) = [n for n in program.graph.nodes if n.name == "model.layers.1.mlp.up_proj/MatMul"]
    twin = gs.Variable("twin")
    program.graph.nodes.append(gs.Node("MatMul", "twin", inputs=product.inputs, outputs=[twin]))
    left_out = {tap for tap in taps_of(LAYERS) if tap not in program_taps(program)}
    assert left_out == {Tap(1, "up")}


def test_a_stream_that_others_read_is_taken_above_its_casts(traced_models: TracedModels):
    """What replaces it reaches the sum as well as the norm."""
    program = staged(traced_models, "gqa", POINTS["bfloat16"]).programs.programs["prefill"]
    taps = program_taps(program)
    readers = {
        node.op
        for node in program.graph.nodes
        for tensor in node.inputs
        if tensor.name == taps[Tap(0, "resid1")].tensor
    }
    assert readers == {"Cast", "Add"}
