"""Which heads a rank holds, and what does not divide, from config.json alone."""

import pytest

from compiler.contracts.tensor_parallel import (
    kv_heads_of_rank,
    kv_repeats,
    sharding_violations,
)

CONFIG = {"num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 96}
PLACES = {"frontend.model_kwargs.tp": "model.yaml:7:9"}


@pytest.mark.parametrize(
    ("kv_heads", "ways", "wanted"),
    [
        (8, 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (2, 4, [(0,), (0,), (1,), (1,)]),
        (3, 2, [(0, 0, 1), (1, 2, 2)]),
        (1, 3, [(0,), (0,), (0,)]),
        (3, 1, [(0, 1, 2)]),
    ],
)
def test_key_heads_of_ranks(kv_heads: int, ways: int, wanted: list[tuple[int, ...]]):
    assert [kv_heads_of_rank(kv_heads, ways, rank) for rank in range(ways)] == wanted


@pytest.mark.parametrize(("heads", "kv_heads", "ways"), [(16, 8, 4), (16, 2, 8), (6, 3, 2)])
def test_a_rank_holds_the_key_heads_of_its_queries(heads: int, kv_heads: int, ways: int):
    group = heads // kv_heads // kv_repeats(kv_heads, ways)
    for rank in range(ways):
        queries = range(rank * heads // ways, (rank + 1) * heads // ways)
        read = [head // (heads // kv_heads) for head in queries]
        held = kv_heads_of_rank(kv_heads, ways, rank)
        assert read == [held[index // group] for index in range(len(read))]


def test_everything_that_does_not_divide_at_once():
    found = sharding_violations(CONFIG, ways=5, align_qkv=False, places=PLACES)
    assert [(error.code, error.where) for error in found] == [
        ("indivisible", "model.yaml:7:9"),
        ("indivisible", "model.yaml:7:9"),
        ("kv-heads", "model.yaml:7:9"),
    ]
    assert found[0].message == "num_attention_heads is 16, which tp 5 does not divide"
    assert found[0].hint == "choose a tp that does: 1, 2, 4, 8, 16"


def test_key_heads_may_be_repeated_with_leave():
    (error,) = sharding_violations(CONFIG, ways=4, align_qkv=False, places=PLACES)
    assert error.hint == (
        "write `align_qkv: true` under frontend.model_kwargs to store each 2 times"
    )
    assert sharding_violations(CONFIG, ways=4, align_qkv=True, places=PLACES) == []


def test_key_heads_are_as_many_as_queries_where_nothing_is_said():
    config = {"num_attention_heads": 4, "intermediate_size": 8}
    assert sharding_violations(config, ways=4, align_qkv=False, places=PLACES) == []
    assert sharding_violations({}, ways=4, align_qkv=False, places=PLACES) == []
