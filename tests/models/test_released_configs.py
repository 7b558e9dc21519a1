"""The config.json of released Qwen2.5 and Qwen3, as it is and with yarn as the card says."""

from collections.abc import Mapping

import pytest

from compiler.contracts.model_base import ModelFamily
from models.qwen2 import Qwen2
from models.qwen3 import Qwen3

# hidden, intermediate, layers, heads, key heads, vocabulary, tied
SIZES: Mapping[str, tuple[int, int, int, int, int, int, bool]] = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, 151936, True),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, 152064, False),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064, False),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064, False),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, 152064, False),
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, 151936, True),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, 151936, False),
    "Qwen3-32B": (5120, 25600, 64, 64, 8, 151936, False),
}
# Millions of parameters, from the sizes above.
PARAMETERS = {
    "Qwen2.5-0.5B": 494,
    "Qwen2.5-1.5B": 1544,
    "Qwen2.5-3B": 3086,
    "Qwen2.5-7B": 7616,
    "Qwen2.5-14B": 14770,
    "Qwen2.5-32B": 32764,
    "Qwen2.5-72B": 72706,
    "Qwen3-0.6B": 596,
    "Qwen3-8B": 8191,
    "Qwen3-32B": 32762,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


def released(name: str) -> dict[str, object]:
    hidden, inner, layers, heads, kv_heads, vocabulary, tied = SIZES[name]
    is_qwen3 = name.startswith("Qwen3")
    config: dict[str, object] = {
        "architectures": ["Qwen3ForCausalLM" if is_qwen3 else "Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 40960 if is_qwen3 else 32768,
        "max_window_layers": layers,
        "model_type": "qwen3" if is_qwen3 else "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None if is_qwen3 else 131072,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }
    own = {"attention_bias": False, "head_dim": 128, "rope_scaling": None}
    return config | own if is_qwen3 else config | {"use_mrope": False}


def family(name: str) -> ModelFamily:
    return Qwen3() if name.startswith("Qwen3") else Qwen2()


@pytest.mark.parametrize("name", SIZES)
def test_each_is_accepted_and_has_its_size(name: str):
    config = released(name)
    assert family(name).violations(config) == []
    assert set(family(name).layer_kinds(config)) == {"full_attention"}
    count = sum(
        shape[0] * (shape[1] if len(shape) == 2 else 1)
        for shape in family(name).tensors(config).values()
    )
    assert round(count / 1e6) == PARAMETERS[name]


@pytest.mark.parametrize("spelling", ["type", "rope_type"])
@pytest.mark.parametrize("name", SIZES)
def test_yarn_of_the_model_card_is_accepted(name: str, spelling: str):
    config = {**released(name), "rope_scaling": {**YARN, spelling: "yarn"}}
    assert family(name).violations(config) == []
    plain, stretched = family(name).buffers(released(name)), family(name).buffers(config)
    ((key, before),) = plain.items()
    ratio = before / stretched[key]
    # Fast dimensions are left alone, slow ones turn four times slower.
    assert (ratio[0], ratio[-1]) == (1.0, 4.0)
    assert (ratio[1:] >= ratio[:-1]).all()
