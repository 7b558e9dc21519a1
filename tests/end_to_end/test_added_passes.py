"""Bundles built with passes that a user adds, against the same models built without them."""

from dataclasses import replace

import numpy as np
import pytest
from built_bundles import BuiltBundles, TinyModel

from compiler.contracts.weights import DTYPES
from compiler.stages.execute import GenerateOptions
from compiler.workflows.run import open_session

pytestmark = pytest.mark.slow

ADDED = ("fuse-qkv", "fuse-gate-up", "fuse-rotary", "pad-vocabulary", "eliminate-dead")
PLAIN = TinyModel("plain", vocabulary=130, tied=True)
PLAIN_BF16 = TinyModel(
    "plain-bf16", vocabulary=130, hidden=56, heads=7, kv_heads=1, stored="bfloat16", dtype="bf16"
)


def generated(bundles: BuiltBundles, model: TinyModel, length: int) -> tuple[list[int], np.ndarray]:
    """Sixteen tokens after a random prompt, and the logits that they were chosen from."""
    prompt = np.random.default_rng(length).integers(0, model.vocabulary, length).tolist()
    with open_session(bundles.bundle(model)) as session:
        found = session.complete(prompt, GenerateOptions(max_tokens=16, keep_logits=True))
    assert found.logits is not None
    return list(found.tokens), found.logits


@pytest.mark.parametrize("plain", [PLAIN, PLAIN_BF16], ids=lambda model: model.name)
def test_they_change_no_token(built_bundles: BuiltBundles, plain: TinyModel) -> None:
    added = replace(plain, name=f"{plain.name}-added", added=ADDED)
    fired = {
        (record.name, record.phase): record.rewrites
        for record in built_bundles.result(added).passes
        if record.name in ADDED
    }
    assert len(fired) == 2 * len(ADDED)
    for name, rewrites in zip(ADDED, (2, 2, 4, 1, 2), strict=True):
        assert fired[name, "prefill"] == fired[name, "decode"] == rewrites, name

    for length in (32, 9):
        tokens, logits = generated(built_bundles, plain, length)
        added_tokens, added_logits = generated(built_bundles, added, length)
        assert added_tokens == tokens
        assert added_logits.shape == logits.shape == (16, plain.vocabulary)
        assert np.abs(added_logits - logits).max() < 1e-5


def test_padding_and_joining_store_nothing_twice(built_bundles: BuiltBundles) -> None:
    added = replace(PLAIN, name="plain-added", added=ADDED)
    sizes = [
        (built_bundles.bundle(model) / "params" / "rank0.safetensors").stat().st_size
        for model in (PLAIN, added)
    ]
    padding = (144 - PLAIN.vocabulary) * PLAIN.hidden * DTYPES["float32"].itemsize
    assert abs(sizes[1] - sizes[0] - padding) < 2000  # fewer names in the header
