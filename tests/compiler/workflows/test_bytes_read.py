"""What a decode step must read, counted by hand."""

import pytest
from built_bundles import TINY, BuiltBundles, TinyModel

from compiler.stages.open_bundle import open_bundle
from compiler.workflows.bytes_read import BytesRead, bytes_read

# Of TINY: 2 layers, hidden 64, 4 heads and 2 key heads of 16, intermediate 96, vocabulary 128.
_LINEARS = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
_BIASES_AND_NORMS = 64 + 2 * 32 + 2 * 64
_LAYERS = 2 * (_LINEARS + _BIASES_AND_NORMS)
_HEAD, _NORM, _TABLE_ROW = 128 * 64, 64, 64


def read_of(built_bundles: BuiltBundles, model: TinyModel) -> BytesRead:
    found = bytes_read(open_bundle(built_bundles.bundle(model)))
    assert found is not None
    return found


def test_an_embedding_that_is_not_the_head_counts_one_row(built_bundles: BuiltBundles) -> None:
    found = read_of(built_bundles, TINY)
    assert found.weights == 4 * (_LAYERS + _HEAD + _NORM + _TABLE_ROW)
    assert found.cache_row == 2 * 2 * 2 * 16 * 4
    assert found.at(9) == found.weights + 10 * found.cache_row


def test_a_tied_head_counts_once(built_bundles: BuiltBundles) -> None:
    found = read_of(built_bundles, TinyModel(name="tied", tied=True))
    assert found.weights == 4 * (_LAYERS + _HEAD + _NORM)


def test_ranks_count_together(built_bundles: BuiltBundles) -> None:
    whole, halves = (read_of(built_bundles, one) for one in (TINY, TinyModel(name="two", ways=2)))
    assert whole.weights < halves.weights < 1.2 * whole.weights
    assert halves.cache_row == whole.cache_row


def test_without_decode_there_is_nothing_to_read(built_bundles: BuiltBundles) -> None:
    model = TinyModel(name="prefill-only", context=None)
    assert bytes_read(open_bundle(built_bundles.bundle(model))) is None


@pytest.mark.parametrize("batch", [2])
def test_a_step_of_several_prompts_is_counted_for_one(
    built_bundles: BuiltBundles, batch: int
) -> None:
    found = read_of(built_bundles, TinyModel(name="batch", batch=batch))
    assert found.cache_row == 2 * 2 * 2 * 16 * 4
