"""A quantized program without its rounding, layer by layer, is the program before quantization."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from quantized_forms import set_groups, set_int8_table, set_quantized_tokens
from staged_models import POINTS, observed, staged
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import PassError
from compiler.contracts.program import Program
from compiler.contracts.taps import Tap
from compiler.contracts.target_base import ProgramModel
from compiler.contracts.weight_values import RowReader, value
from compiler.numerics.float_twin import float_twin
from compiler.numerics.layered_model import LayeredModel
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.cast_dtype import CastDtype
from targets.onnxruntime.runner import OnnxRuntimeRunner

LAYERS = 2
SAMPLES, LENGTH = 2, 2 * WINDOW + 5
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, (SAMPLES, LENGTH))
POINTS_BEHIND = {
    "before storage": (*POINTS["slice"], AnnotateInt8QDQ()),
    "joined": (*POINTS["all"][:-3], AnnotateInt8QDQ(), *POINTS["all"][-2:]),
    "with the head": (
        *POINTS["slice"],
        AnnotateInt8QDQ(include=("*_proj", "lm_head")),
        *POINTS["llvm"][-2:],
    ),
    "int8": POINTS["int8"],
    "vastai": POINTS["vastai"],
    "half": (
        *POINTS["slice"],
        CastDtype(dtype="float16"),
        AnnotateInt8QDQ(),
        *POINTS["float16"][-2:],
    ),
}
FORMS: dict[str, Callable[[Program], object]] = {
    "groups": lambda program: set_groups(program, bits=4, group=8),
    "channels of 4 bits": lambda program: set_groups(program, bits=4, group=0),
    "int8 activations": set_quantized_tokens,
    "int8 table": set_int8_table,
}


def layered(model: ProgramModel, read: RowReader | None = None) -> LayeredModel:
    return LayeredModel(model.programs.programs["prefill"], read or model.checkpoint.rows)


def logits_of(model: LayeredModel, tokens: np.ndarray) -> np.ndarray:
    """float32 [samples, tokens, vocabulary]"""
    hidden = model.embed(tokens)
    for layer in range(model.layers):
        hidden = model.run_layer(layer, hidden)
    return np.concatenate(list(model.head(hidden))).reshape(*tokens.shape, -1)


@pytest.fixture(scope="module")
def float_logits(traced_models: TracedModels) -> Callable[[str], np.ndarray]:
    """By a model's name: of every token, each read by itself after those before it."""

    @cache
    def logits(name: str) -> np.ndarray:
        rows: list[np.ndarray] = []
        for sample in TOKENS.tolist():
            runner = OnnxRuntimeRunner(staged(traced_models, name, POINTS["slice"]))
            rows += [runner.extend([token]) for token in sample]
        return np.array(rows).reshape(SAMPLES, LENGTH, -1)

    return logits


@pytest.mark.parametrize(
    ("name", "point"),
    [
        *(("qwen3", point) for point in POINTS),
        *(("gqa", point) for point in POINTS_BEHIND),
    ],
)
def test_it_computes_what_the_float_model_computes(
    traced_models: TracedModels,
    float_logits: Callable[[str], np.ndarray],
    name: str,
    point: str,
):
    model = staged(traced_models, name, {**POINTS, **POINTS_BEHIND}[point])
    found = logits_of(layered(model), TOKENS)[..., :VOCABULARY]
    is_narrow = any(word in point for word in ("float16", "half"))
    atol = 0.2 if "bfloat16" in point else 0.02 if is_narrow else 2e-5
    if "int8 cache" in point:  # which the twin keeps
        atol = 0.1
    np.testing.assert_allclose(found, float_logits(name), rtol=0, atol=atol)


@pytest.mark.parametrize("form", list(FORMS))
def test_each_form_of_a_quantized_weight_has_a_twin(
    traced_models: TracedModels, float_logits: Callable[[str], np.ndarray], form: str
):
    model = staged(traced_models, "gqa", POINTS["int8"])
    program = model.programs.programs["prefill"]
    before = program.model().SerializeToString()
    assert FORMS[form](program) != 0
    assert program.model().SerializeToString() != before or form == "channels of 4 bits"
    changed = program.model().SerializeToString()

    found = logits_of(layered(model), TOKENS)

    np.testing.assert_allclose(found, float_logits("gqa"), rtol=0, atol=2e-5)
    assert program.model().SerializeToString() == changed, "the program is left as it was"
    ops = {node.op for node in float_twin(program).program.graph.nodes}
    assert not ops & {"DequantizeLinear", "QuantizedTokens", "QuantizeLinear"}


def test_linears_are_in_order_and_say_who_reads_the_same(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    linears = layered(model).linears(1)
    assert [one.parameter.split(".")[-2] for one in linears] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]
    assert all(one.parameter.startswith("model.layers.1.") for one in linears)
    operands = [one.operand for one in linears]
    assert len(set(operands)) == 4
    assert operands[0] == operands[1] == operands[2]
    assert operands[4] == operands[5]
    assert linears[3].codes.key == "quantize(model.layers.1.self_attn.o_proj.weight)"


def test_what_linears_read_is_shown_without_padding(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    twin = layered(model)
    seen: dict[str, list[np.ndarray]] = {}
    hidden = twin.embed(TOKENS)
    twin.watch_layer(0, hidden, lambda operand, rows: seen.setdefault(operand, []).append(rows))

    runner = OnnxRuntimeRunner(staged(traced_models, "gqa", POINTS["slice"]))
    _, taps = observed(runner, TOKENS[0].tolist()[:WINDOW])
    points = ("norm1", "norm1", "norm1", "attn", "norm2", "norm2", "act")
    for linear, point in zip(twin.linears(0), points, strict=True):
        windows = seen[linear.operand]
        assert [len(rows) for rows in windows] == [WINDOW, WINDOW, 5] * SAMPLES
        np.testing.assert_allclose(windows[0], taps[Tap(0, point)], rtol=0, atol=1e-5)


def test_given_weights_take_a_parameter_s_place(traced_models: TracedModels):
    """With the rounded weights it is the quantized program."""
    model = staged(traced_models, "gqa", POINTS["int8"])
    program = model.programs.programs["prefill"]
    twin = layered(model)
    hidden = twin.embed(TOKENS[:1, :9])
    for layer in range(LAYERS):
        weights = {
            linear.parameter: value(linear.codes, model.checkpoint.rows).astype(np.float32)
            * value(program.weights[f"{linear.parameter}_scale"], model.checkpoint.rows)[:, None]
            for linear in twin.linears(layer)
        }
        given = hidden.copy()
        assert twin.run_layer(layer, given, weights=weights, out=given) is given
        hidden = given
    (found,) = twin.head(hidden)
    wanted = OnnxRuntimeRunner(model).extend(TOKENS[0, :9].tolist())
    np.testing.assert_allclose(found[-1], wanted, rtol=0, atol=2e-5)
    assert np.abs(logits_of(twin, TOKENS[:1, :9])[0, -1] - wanted).max() > 1e-3


def test_like_layers_share_a_session(traced_models: TracedModels):
    twin = layered(staged(traced_models, "qwen3", POINTS["vastai"], layers=4))
    logits_of(twin, TOKENS[:1, :4])
    assert len(twin._sessions) == 3, "of the embedding, the layers and the head"


def test_without_optimisation_more_threads_change_no_bit(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    program, read = model.programs.programs["prefill"], model.checkpoint.rows
    one, two = (
        logits_of(LayeredModel(program, read, threads=count, is_optimised=False), TOKENS)
        for count in (1, 2)
    )
    np.testing.assert_array_equal(one, two)


def test_of_the_checkpoint_one_layer_is_read_at_a_time(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    read: set[str] = set()

    def rows(name: str, start: int, stop: int) -> np.ndarray:
        read.add(name)
        return model.checkpoint.rows(name, start, stop)

    twin = layered(model, rows)
    hidden = twin.embed(TOKENS)
    assert read == {"model.embed_tokens.weight"}
    read.clear()
    twin.run_layer(1, hidden)
    assert len(read) == 12
    assert all(name.startswith("model.layers.1.") for name in read)
    assert set(twin.layer_weights(1)) == read


def test_more_tokens_than_the_context_are_our_bug(traced_models: TracedModels):
    twin = layered(staged(traced_models, "gqa", POINTS["int8"]))
    with pytest.raises(AssertionError, match=f"41 tokens in a context of {CONTEXT}"):
        twin.embed(np.zeros((1, CONTEXT + 1), np.int64))


def test_codes_that_something_else_reads_have_no_twin(traced_models: TracedModels):
    program = staged(traced_models, "gqa", POINTS["int8"]).programs.programs["prefill"]
    node = next(node for node in program.graph.nodes if node.op == "DequantizeLinear")
    node.op = "Identity"
    with pytest.raises(PassError, match="reads the int8 model") as caught:
        float_twin(program)
    assert caught.value.code == "no-float-twin"
    assert caught.value.where == "model.layers.0.self_attn.q_proj/DequantizeLinear (Identity)"


def test_a_layer_that_reads_past_its_border_is_refused(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    program = model.programs.programs["prefill"]
    nodes = {node.name: node for node in program.graph.nodes}
    nodes["model.layers.1/Add"].inputs[0] = nodes["model.layers.0/Add"].outputs[0]
    with pytest.raises(PassError, match="layer 1 reads more of what is before it") as caught:
        layered(model)
    assert caught.value.code == "no-border"


def test_a_graph_without_its_norms_is_refused(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    for node in model.programs.programs["prefill"].graph.nodes:
        node.name = node.name.replace("model.layers.1.input_layernorm", "elsewhere")
    with pytest.raises(PassError, match=r"does not hold model\.layers\.0/resid2") as caught:
        layered(model)
    assert caught.value.code == "no-border"
