"""What the families differ in, built for the CPU and run, against transformers in float32."""

import json

import numpy as np
import pytest
from built_bundles import BuiltBundles, TinyModel
from family_variants import VARIANTS
from numpy_model import float64_logits
from reference_model import load_reference, reference_chunks
from safetensors.numpy import load_file

from compiler.workflows.run import open_session

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
WINDOW, CONTEXT = 16, 48
MODELS = [
    TinyModel(f"variant-{name}", variant=name, window=WINDOW, context=CONTEXT)
    # What differs in the graph; the other types are other constants in these.
    for name in ("qwen3-sliding", "dynamic", "longrope", "sliding", "logn")
]
# Padded and whole windows, and steps, past 12, 16, 20 and the edges of windows of 6 and 21.
CHUNKS = (9, 16, 1, 1, 1, 10, 1, 9)


def draw(model: TinyModel) -> list[int]:
    return np.random.default_rng(5).integers(0, model.vocabulary, CONTEXT).tolist()


def cut(tokens: list[int], lengths: tuple[int, ...]) -> list[list[int]]:
    assert sum(lengths) == len(tokens)
    ends = np.cumsum(lengths)
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def last_logits(
    built_bundles: BuiltBundles, model: TinyModel, chunks: list[list[int]]
) -> list[np.ndarray]:
    """The reference's, after each chunk."""
    folder = built_bundles.checkpoint(model)
    if model.variant != "logn":
        return [rows[-1] for rows in reference_chunks(load_reference(folder), chunks)]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    numbers = {key: one for key, one in config.items() if isinstance(one, int | float)}
    tokens = [token for chunk in chunks for token in chunk]
    tensors = load_file(folder / "model.safetensors")
    logits = float64_logits(numbers, tensors, tokens, logn_length=config["seq_length"])
    return [logits[end - 1] for end in np.cumsum([len(chunk) for chunk in chunks])]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.variant)
def test_windows_and_steps_equal_the_reference(
    built_bundles: BuiltBundles, model: TinyModel
) -> None:
    assert model.variant in VARIANTS
    tokens = draw(model)
    chunks = cut(tokens, CHUNKS)
    wanted = last_logits(built_bundles, model, chunks)
    # A prompt longer than a window is read as its windows.
    windows = last_logits(built_bundles, model, cut(tokens, (16, 16, 16)))
    with open_session(built_bundles.bundle(model)) as session:
        for chunk, logits in zip(chunks, wanted, strict=True):
            where = f"{len(chunk)} tokens after {session.runner.length}"
            assert np.abs(session.runner.extend(chunk) - logits).max() < TOLERANCE, where
        session.runner.rewind(0)
        assert np.abs(session.runner.extend(tokens) - windows[-1]).max() < TOLERANCE
