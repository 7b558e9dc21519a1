"""Inputs for programs at every point of the pipeline."""

import numpy as np
import pytest
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.program import Phase
from compiler.numerics.feeds import PAD_TOKEN, Lengths, lengths_of, program_feeds
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.plan_kv_cache import PlanKVCache
from passes.store_kv_cache import CacheDtype, StoreKVCache


@pytest.mark.parametrize(
    ("phase", "wanted"),
    [
        ("prefill", (Lengths(0, WINDOW), Lengths(5, WINDOW - 3), Lengths(CONTEXT - 8, 8))),
        ("decode", (Lengths(0, 1), Lengths(5, 1), Lengths(CONTEXT - 1, 1))),
    ],
)
def test_lengths(traced_models: TracedModels, phase: Phase, wanted: tuple[Lengths, ...]):
    assert lengths_of(traced_models.programs("gqa").programs[phase]) == wanted


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_signature_after_each_change_of_it(traced_models: TracedModels, phase: Phase):
    program = traced_models.programs("gqa").programs[phase]
    lengths = lengths_of(program)[1]
    given = program_feeds(program, lengths, vocabulary=VOCABULARY, seed=4)
    FoldConstants().run(program)
    for one in (FoldMask(), PlanKVCache()):
        one.run(program)
        given = one.adapt_inputs(given, program)
        made = program_feeds(program, lengths, vocabulary=VOCABULARY, seed=4)
        specs = {spec.name: (spec.dtype, len(spec.shape)) for spec in program.inputs()}
        assert {n: (a.dtype.name, a.ndim) for n, a in made.items()} == specs
        assert {n: a.shape for n, a in made.items()} == {n: a.shape for n, a in given.items()}
        for name in ("input_ids", "past_length", "valid_length"):
            np.testing.assert_array_equal(made[name], given[name])
    cache = made["past_key_values.0.key"]
    assert (cache[lengths.past :] == 0).all()
    assert (cache[: lengths.past] != 0).all()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_caches_that_are_stored_narrowly(traced_models: TracedModels, dtype: CacheDtype):
    program = traced_models.programs("gqa").programs["decode"]
    for one in (FoldMask(), PlanKVCache(), StoreKVCache(dtype)):
        one.run(program)
    made = program_feeds(program, Lengths(5, 1), vocabulary=VOCABULARY)
    assert {n: a.dtype.name for n, a in made.items()} == {
        spec.name: spec.dtype for spec in program.inputs()
    }
    cache = made["past_key_values.0.key"]
    assert not cache[5:].any()
    assert len(np.unique(cache[:5])) > 10
    if dtype == "int8":
        scales = made["past_key_values.0.key_scale"]
        assert scales.shape == (*cache.shape[:2], 1)
        assert (scales[:5] > 0).all()
        assert not scales[5:].any()


def test_padding_is_on_the_right_and_seeds_decide(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["prefill"]
    feeds = [
        program_feeds(program, Lengths(5, 3), vocabulary=VOCABULARY, seed=seed)
        for seed in (0, 0, 1)
    ]
    ids = feeds[0]["input_ids"]
    assert (ids[0, 3:] == PAD_TOKEN).all()
    assert feeds[0]["attention_mask"][0].tolist() == [1] * 8 + [0] * (WINDOW - 3)
    assert feeds[0]["position_ids"][0].tolist() == list(range(5, 5 + WINDOW))
    assert feeds[0]["input_ids"].tobytes() == feeds[1]["input_ids"].tobytes()
    assert feeds[0]["input_ids"].tobytes() != feeds[2]["input_ids"].tobytes()
