"""Rope types: the numbers are transformers' to the bit, and what it cannot read is refused."""

import copy
from collections.abc import Mapping

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.utils import logging as transformers_logging

from models.rope import read_rope, rope_violations
from models.rotary import Rotary, frequency_tables, logn_scale

HEAD_DIM, LONGEST = 16, 32
SHORT = [1.0 + 0.1 * index for index in range(8)]
LONG = [1.0 + 0.7 * index for index in range(8)]
CONFIG: Mapping[str, object] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": LONGEST,
    "rope_theta": 1e6,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "factor": 3.0,
    "original_max_position_embeddings": 16,
}
ACCEPTED: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "default, spelt out": {"rope_scaling": {"rope_type": "default"}},
    "its own theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "nothing in it": {"rope_scaling": {}, "rope_parameters": {"rope_theta": 5e5}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.5}},
    "dynamic, by one": {"rope_scaling": {"rope_type": "dynamic", "factor": 1.1}},
    "yarn": {"rope_scaling": YARN},
    "yarn, written newly": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5},
    },
    "yarn over rope_parameters": {
        "rope_scaling": YARN,
        "rope_parameters": {"rope_type": "default"},
    },
    "yarn, factor from the lengths": {"rope_scaling": {**YARN, "factor": None}},
    "yarn, a length beside it": {
        "rope_scaling": YARN,
        "original_max_position_embeddings": 8,
    },
    "yarn, bounds": {"rope_scaling": {**YARN, "beta_fast": 4, "beta_slow": 2}},
    "yarn, not truncated": {
        "rope_scaling": {**YARN, "original_max_position_embeddings": 4096, "truncate": False}
    },
    "yarn, mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}},
    "yarn, one mscale": {"rope_scaling": {**YARN, "mscale": 0.7}},
    "yarn, attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.25}},
    "yarn of one": {"rope_scaling": {**YARN, "factor": 1.0}},
    "longrope": {"rope_scaling": LONGROPE},
    "longrope, attention factor": {"rope_scaling": {**LONGROPE, "attention_factor": 1.5}},
    "longrope, factor from the lengths": {"rope_scaling": {**LONGROPE, "factor": None}},
    "longrope of one": {"rope_scaling": {**LONGROPE, "factor": 1.0}},
    # Keys that the type does not read.
    "linear with a scale": {
        "rope_scaling": {"type": "linear", "factor": 4.0, "attention_factor": 2.0, "mscale": "x"}
    },
}


@pytest.fixture
def quiet():
    """Warnings of transformers about configurations that it reads all the same."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity(before)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", ACCEPTED)
def test_cos_and_sin_are_those_of_transformers(case: str):
    keys = {**CONFIG, **ACCEPTED[case]}
    assert rope_violations(keys, head_dim=HEAD_DIM, default_length=LONGEST) == []
    given = {key: value for key, value in keys.items() if value is not None}
    theirs = Qwen2RotaryEmbedding(Qwen2Config.from_dict(copy.deepcopy(given)))
    rope = read_rope(keys, default_length=LONGEST)
    assert rope.scaling == theirs.attention_scaling
    ours = Rotary(rope, HEAD_DIM)
    tables = frequency_tables(rope, HEAD_DIM)
    assert dict(ours.named_buffers()).keys() == tables.keys()
    for name, table in tables.items():
        getattr(ours, name).copy_(table)
    # Up to, at and past 16 and 32; rising, as in one conversation.
    for length in (5, 8, 9, 16, 17, 32, 33, 50, 131):
        positions = torch.arange(length)[None]
        wanted = theirs(torch.zeros(1), positions)
        found = ours(positions, torch.ones(1, length, dtype=torch.int64))
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one[0], other), length


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic", "factor": 2.0}, LONGROPE], ids=["dynamic", "longrope"]
)
def test_padding_is_not_counted(rope: Mapping[str, object]):
    """A window that ends before the trained length, its padding after it."""
    settings = read_rope({**CONFIG, "rope_scaling": rope}, default_length=LONGEST)
    module = Rotary(settings, HEAD_DIM)
    for name, table in frequency_tables(settings, HEAD_DIM).items():
        getattr(module, name).copy_(table)
    positions = torch.arange(48)[None]

    def cos(valid: int) -> torch.Tensor:
        return module(positions, (torch.arange(48) < valid).long()[None])[0]

    trained = settings.trained
    assert torch.equal(cos(trained), cos(1))
    assert not torch.equal(cos(trained + 1), cos(trained))


def test_lengths_that_the_configuration_leaves_out():
    assert read_rope({"rope_theta": None}, default_length=77).trained == 77
    assert read_rope({}, default_length=77).theta == 10000.0


@pytest.mark.parametrize(
    ("keys", "message", "where"),
    [
        (
            {"rope_scaling": "yarn"},
            "rope_scaling is 'yarn', expected an object or null",
            "rope_scaling",
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            "rope type 'mrope' is not supported yet",
            "rope_scaling",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "rope type 'llama3' is not supported yet",
            "rope_parameters",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "a rotary embedding for each layer type is not supported yet",
            "rope_parameters",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "a partial rotary embedding is not supported yet",
            "partial_rotary_factor",
        ),
        (
            {"partial_rotary_factor": 0.25},
            "a partial rotary embedding is not supported yet",
            "partial_rotary_factor",
        ),
        (
            {"rope_parameters": {"rope_theta": "1e6"}},
            "rope_theta is '1e6', expected a positive number",
            "rope_theta",
        ),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling.factor is None, expected a positive number for rope type 'linear'",
            "rope_scaling.factor",
        ),
        (
            {"rope_scaling": {"type": "yarn"}},
            "rope_scaling.factor is None, expected a positive number for rope type 'yarn'",
            "rope_scaling.factor",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": -2}},
            "rope_parameters.factor is -2, expected a positive number",
            "rope_parameters.factor",
        ),
        (
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 1}},
            "rope_scaling.original_max_position_embeddings is 1, expected an integer over 1",
            "rope_scaling.original_max_position_embeddings",
        ),
        (
            {"rope_scaling": YARN, "max_position_embeddings": None},
            "max_position_embeddings is None, expected an integer over 1",
            "max_position_embeddings",
        ),
        (
            {"max_position_embeddings": "32k"},
            "max_position_embeddings is '32k', expected an integer over 1",
            "max_position_embeddings",
        ),
        (
            {"rope_scaling": {**YARN, "attention_factor": 0}},
            "rope_scaling.attention_factor is 0, expected a positive number",
            "rope_scaling.attention_factor",
        ),
        (
            {"rope_scaling": {**YARN, "beta_fast": "32"}},
            "rope_scaling.beta_fast is '32', expected a positive number",
            "rope_scaling.beta_fast",
        ),
        (
            {"rope_scaling": {**YARN, "truncate": None}},
            "rope_scaling.truncate is None, expected true or false",
            "rope_scaling.truncate",
        ),
        (
            {"rope_scaling": YARN, "rope_theta": 1},
            "rope_theta is 1, expected a number over 1 for rope type 'yarn'",
            "rope_theta",
        ),
        (
            {"rope_scaling": {**LONGROPE, "long_factor": [1.0, 2.0]}},
            "rope_scaling.long_factor is [1.0, 2.0], expected a list of 8 positive numbers",
            "rope_scaling.long_factor",
        ),
        (
            {"rope_scaling": {k: v for k, v in LONGROPE.items() if k != "short_factor"}},
            "rope_scaling.short_factor is None, expected a list of 8 positive numbers",
            "rope_scaling.short_factor",
        ),
    ],
)
def test_what_is_refused(keys: Mapping[str, object], message: str, where: str):
    (error,) = rope_violations({**CONFIG, **keys}, head_dim=HEAD_DIM, default_length=LONGEST)
    assert (error.message, error.where) == (message, where)


def test_known_types_are_named():
    keys = {**CONFIG, "rope_scaling": {"type": "su"}}
    (error,) = rope_violations(keys, head_dim=HEAD_DIM, default_length=LONGEST)
    assert error.hint == "supported: 'default', 'dynamic', 'linear', 'longrope', 'yarn'"
    assert error.code == "not-supported-yet"


def test_a_head_too_small_to_stretch():
    keys = {**CONFIG, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    (error,) = rope_violations(keys, head_dim=2, default_length=LONGEST)
    assert error.message == "head_dim is 2, expected at least 4 for rope type 'dynamic'"


def test_logn_grows_past_the_trained_length():
    scale = logn_scale(torch.tensor([[0, 1, 6, 7, 8, 63]]), 8)
    assert scale.shape == (1, 1, 6, 1)
    torch.testing.assert_close(scale.flatten()[:4], torch.ones(4), rtol=0, atol=1e-7)
    torch.testing.assert_close(scale.flatten()[4:], torch.tensor([1.056641667, 2.0]))
