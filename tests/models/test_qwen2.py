"""Qwen2 and Llama: what a configuration means, what is refused, and the traced numbers."""

from collections.abc import Mapping

import numpy as np
import pytest
from program_runs import run_program, traced_inputs, valid_part
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import Phase
from models.llama import Llama
from models.qwen2 import Qwen2
from models.qwen3 import Qwen3

CONFIG: Mapping[str, object] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


def refusals(**keys: object) -> list[CheckpointError]:
    config = {**CONFIG, **keys}
    found = Qwen2().violations(config)
    assert all(isinstance(error, CheckpointError) for error in found)
    return [error for error in found if isinstance(error, CheckpointError)]


def only_refusal(**keys: object) -> CheckpointError:
    (found,) = refusals(**keys)
    return found


# -- what is refused


def test_a_plain_configuration_is_accepted():
    assert refusals() == []
    assert refusals(rope_scaling=None, head_dim=24, hidden_act="silu") == []
    assert refusals(rope_parameters={"rope_type": "default", "rope_theta": 1e6}) == []
    assert refusals(layer_types=["full_attention"] * 2, use_sliding_window=False) == []
    # The window is declared in every Qwen2 checkpoint, and not used.
    assert refusals(sliding_window=32768, max_window_layers=28) == []


@pytest.mark.parametrize("value", [None, 0, -4, 2.0, "64", True])
def test_a_size_that_is_no_size(value: object):
    error = only_refusal(hidden_size=value)
    assert error.message == f"hidden_size is {value!r}, expected a positive integer"
    assert error.where == "hidden_size"


def test_all_missing_sizes_at_once():
    errors = refusals(hidden_size=None, vocab_size=None, num_hidden_layers=0)
    assert [error.where for error in errors] == ["hidden_size", "num_hidden_layers", "vocab_size"]


@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim"])
def test_an_optional_size_that_is_no_size(key: str):
    error = only_refusal(**{key: 0})
    assert (error.message, error.where) == (f"{key} is 0, expected a positive integer", key)


@pytest.mark.parametrize("value", ["1e-5", 0, -1.0, True])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_a_number_that_is_no_number(key: str, value: object):
    error = only_refusal(**{key: value})
    assert error.message == f"{key} is {value!r}, expected a positive number"
    assert error.where == key


def test_heads_that_do_not_divide():
    error = only_refusal(num_key_value_heads=3)
    assert error.message == "num_attention_heads 4 is not a multiple of num_key_value_heads 3"
    error = only_refusal(hidden_size=66)
    assert error.message == "hidden_size 66 is not a multiple of 4 heads"
    assert error.hint == "such a checkpoint names its head_dim"
    assert refusals(hidden_size=66, head_dim=16) == []


def test_an_odd_head():
    assert only_refusal(head_dim=15).message == "head_dim 15 is odd"
    assert only_refusal(hidden_size=60).message == "head_dim 15 is odd"


NTK = "rope_scaling of type 'dynamic'"


@pytest.mark.parametrize(
    ("keys", "what", "key", "supported"),
    [
        ({"use_dynamic_ntk": True}, "the first Qwen's dynamic NTK", "use_dynamic_ntk", NTK),
        ({"hidden_act": "gelu"}, "activation 'gelu'", "hidden_act", "'silu'"),
        (
            {"quantization_config": {"bits": 4}},
            "a quantized checkpoint",
            "quantization_config",
            "a float checkpoint",
        ),
    ],
)
def test_what_is_not_supported_yet(keys: Mapping[str, object], what: str, key: str, supported: str):
    error = only_refusal(**keys)
    assert error.message == f"{what} is not supported yet"
    assert error.where == key
    assert error.hint == f"supported: {supported}"
    assert error.code == "not-supported-yet"


def test_every_violation_at_once():
    rope = {"type": "llama3"}
    errors = refusals(
        num_key_value_heads=3, rope_scaling=rope, sliding_window=0, use_sliding_window=True
    )
    assert [error.where for error in errors] == [
        *("num_key_value_heads", "rope_scaling", "sliding_window")
    ]


@pytest.mark.parametrize(
    ("keys", "message", "where"),
    [
        (
            {"use_logn_attn": "yes"},
            "use_logn_attn is 'yes', expected true or false",
            "use_logn_attn",
        ),
        (
            {"use_logn_attn": True},
            "seq_length is None, expected the trained length for use_logn_attn",
            "seq_length",
        ),
        (
            {"use_logn_attn": True, "seq_length": 1},
            "seq_length is 1, expected the trained length for use_logn_attn",
            "seq_length",
        ),
    ],
)
def test_logn_scaling_needs_its_length(keys: Mapping[str, object], message: str, where: str):
    error = only_refusal(**keys)
    assert (error.message, error.where) == (message, where)
    assert refusals(use_logn_attn=True, seq_length=8192) == []
    assert refusals(use_logn_attn=False, seq_length=0) == []


def test_llama_has_no_windows():
    config = {**CONFIG, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    (error,) = Llama().violations(config)
    assert error.message == "sliding-window attention is not supported yet"
    assert (error.where, error.hint) == ("use_sliding_window", "supported: false")
    assert Qwen2().violations(config) == []
    assert Qwen2().layer_kinds(config) == ("sliding_attention",) * 2
    assert Llama().layer_kinds(CONFIG) == ("full_attention",) * 2


# -- what a configuration means


def test_tensors_of_qwen2():
    tensors = Qwen2().tensors({**CONFIG, "num_hidden_layers": 1, "head_dim": 24})
    layer = "model.layers.0"
    assert tensors == {
        "model.embed_tokens.weight": (128, 64),
        f"{layer}.input_layernorm.weight": (64,),
        f"{layer}.post_attention_layernorm.weight": (64,),
        f"{layer}.self_attn.q_proj.weight": (96, 64),
        f"{layer}.self_attn.q_proj.bias": (96,),
        f"{layer}.self_attn.k_proj.weight": (48, 64),
        f"{layer}.self_attn.k_proj.bias": (48,),
        f"{layer}.self_attn.v_proj.weight": (48, 64),
        f"{layer}.self_attn.v_proj.bias": (48,),
        f"{layer}.self_attn.o_proj.weight": (64, 96),
        f"{layer}.mlp.gate_proj.weight": (96, 64),
        f"{layer}.mlp.up_proj.weight": (96, 64),
        f"{layer}.mlp.down_proj.weight": (64, 96),
        "model.norm.weight": (64,),
        "lm_head.weight": (128, 64),
    }
    assert "lm_head.weight" not in Qwen2().tensors({**CONFIG, "tie_word_embeddings": True})


def test_biases_of_llama_follow_the_configuration():
    def biases(**keys: object) -> set[str]:
        names = Llama().tensors({**CONFIG, "num_hidden_layers": 1, **keys})
        return {name.split(".")[-2] for name in names if name.endswith(".bias")}

    assert biases() == set()
    assert biases(attention_bias=True) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert biases(mlp_bias=True) == {"gate_proj", "up_proj", "down_proj"}


def test_without_kv_heads_there_are_as_many_as_heads():
    config = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    assert Qwen2().cache_shape(config) == (4, 16)
    assert Qwen2().cache_shape({**CONFIG, "head_dim": 24}) == (2, 24)


def test_tensors_of_qwen3():
    config = {**CONFIG, "num_hidden_layers": 1, "head_dim": 24}
    attention = "model.layers.0.self_attn"
    norms = {f"{attention}.q_norm.weight": (24,), f"{attention}.k_norm.weight": (24,)}
    biases = {name for name in Qwen2().tensors(config) if name.endswith(".bias")}
    plain = {name: s for name, s in Qwen2().tensors(config).items() if name not in biases}
    assert Qwen3().tensors(config) == {**plain, **norms}
    biased = Qwen3().tensors({**config, "attention_bias": True})
    assert {name for name in biased if name.endswith(".bias")} == {
        *biases,
        f"{attention}.o_proj.bias",
    }
    # Its head_dim is not hidden over heads.
    assert Qwen3().cache_shape(CONFIG) == (2, 128)
    assert Qwen3().violations({**CONFIG, "hidden_size": 66}) == []


@pytest.mark.parametrize(
    ("keys", "theta"),
    [
        ({}, 1e4),
        ({"rope_theta": 1e6}, 1e6),
        ({"rope_theta": 1000000}, 1e6),
        ({"rope_theta": 1e5, "rope_parameters": {"rope_theta": 5e5}}, 5e5),
    ],
)
def test_inverse_frequencies(keys: Mapping[str, object], theta: float):
    ((name, found),) = Qwen2().buffers({**CONFIG, **keys}).items()
    assert name == "model.rotary_emb.inv_freq"
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theta ** -(np.arange(0, 16, 2) / 16), rtol=3e-7)


# -- the traced numbers

MODELS = ("mha", "gqa", "own-head-dim", "llama")


class Reference:
    """transformers on the same checkpoint: tokens in, logits and caches out."""

    def __init__(self, traced_models: TracedModels, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            traced_models.checkpoint(name).path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with self._torch.no_grad():
            output = self.model(self._torch.from_numpy(tokens)[None], use_cache=True)
        cache = {}
        for index, layer in enumerate(output.past_key_values.layers):
            cache[f"{index}.key"] = layer.keys.numpy()
            cache[f"{index}.value"] = layer.values.numpy()
        return output.logits.numpy(), cache


@pytest.mark.parametrize("name", MODELS)
def test_the_traced_graphs_equal_transformers(traced_models: TracedModels, name: str):
    programs, checkpoint = traced_models.programs(name), traced_models.checkpoint(name)
    reference = Reference(traced_models, name)
    architecture = "LlamaForCausalLM" if name == "llama" else "Qwen2ForCausalLM"
    assert type(reference.model).__name__ == architecture
    cases: list[tuple[Phase, int, int]] = [
        *(("prefill", 0, WINDOW), ("prefill", 0, 5), ("prefill", 9, 11), ("prefill", 20, 1)),
        *(("decode", 0, 1), ("decode", 23, 1)),
    ]
    for phase, past, valid in cases:
        program = programs.programs[phase]
        inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
        tokens = np.random.default_rng(past).integers(0, VOCABULARY, past + valid)
        inputs["input_ids"][0, :valid] = tokens[past:]
        wanted, cache = reference(tokens)
        for key in cache:
            inputs[f"past_key_values.{key}"] = np.ascontiguousarray(cache[key][:, :, :past])
        found = valid_part(run_program(program, inputs, checkpoint), past=past, valid=valid)
        where = f"{phase}, {past} past, {valid} valid"
        np.testing.assert_allclose(
            found["logits"], wanted[:, past:], rtol=0, atol=1e-4, err_msg=where
        )
        for key, value in cache.items():
            np.testing.assert_allclose(
                found[f"present.{key}"], value, rtol=0, atol=1e-4, err_msg=where
            )


def test_biases_and_norms_matter(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["decode"]
    checkpoint = traced_models.checkpoint("gqa")
    inputs = traced_inputs(program, past=3, valid=1, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)["logits"]
    for name in ("model.layers.1.self_attn.v_proj.bias", "model.norm.weight"):
        changed = traced_models.programs("gqa").programs["decode"]
        changed.weights[name] = changed.weights["model.layers.0.input_layernorm.weight"]
        if name.endswith("bias"):
            changed.weights[name] = changed.weights["model.layers.0.self_attn.v_proj.bias"]
        assert np.abs(run_program(changed, inputs, checkpoint)["logits"] - wanted).max() > 1e-2
