"""Bundles with int8 linears, against transformers with the same weights rounded by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from built_bundles import BuiltBundles, TinyModel, in_this_process
from reference_model import load_reference, reference_logits

from compiler.config import load_config
from compiler.stages.execute import GenerateOptions
from compiler.workflows.build import build
from compiler.workflows.run import open_session
from targets.llvm.features import detect, has_tiles

pytestmark = pytest.mark.slow

MODEL = TinyModel("int8", stored="bfloat16", dtype="bf16", hidden=56, heads=7, kv_heads=1)
STEPS = 8


def quantized_yaml(folder: Path, yaml: Path, options: dict[str, object]) -> Path:
    """The model's YAML with the quantizing pass after the default ones."""
    tree = json.loads(yaml.read_text(encoding="utf-8"))
    # Float32 caches and, where the CPU has tiles, activations: what transformers has.
    narrow = ["store-kv-cache", *(["round-activations"] if has_tiles(detect()) else [])]
    tree["passes"] = {"add": [{"annotate-int8-qdq": options}], "drop": narrow}
    tree["workspace"] = {"path": str(folder / "workspace")}
    (folder / "model.yaml").write_text(json.dumps(tree), encoding="utf-8")
    return folder / "model.yaml"


def round_weights(model: torch.nn.Module, linears: tuple[str, ...]) -> int:
    """Round the weights of linears whose names end so, each row by its own scale; their number."""
    found = [part for name, part in model.named_modules() if name.endswith(linears)]
    for linear in found:
        assert isinstance(linear, torch.nn.Linear)
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        linear.weight.data = torch.round(linear.weight.detach() / scale) * scale
    return len(found)


@pytest.mark.parametrize(
    ("options", "linears", "count"),
    [
        ({}, ("_proj",), 14),
        (
            {
                "include": ["model.layers.*_proj", "lm_head"],
                "exclude": ["model.layers.0.*.[kv]_proj"],
                "operator": "vastai",
            },
            (
                *("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
                *("1.self_attn.k_proj", "1.self_attn.v_proj"),
            ),
            13,
        ),
    ],
)
def test_a_bundle_gives_what_transformers_gives_with_rounded_weights(
    built_bundles: BuiltBundles,
    tmp_path: Path,
    options: dict[str, object],
    linears: tuple[str, ...],
    count: int,
):
    yaml = quantized_yaml(tmp_path, built_bundles.yaml(MODEL), options)
    with in_this_process():
        bundle = build(load_config(yaml)).bundle
    reference = load_reference(built_bundles.checkpoint(MODEL))
    prompt = np.random.default_rng(4).integers(0, MODEL.vocabulary, 35).tolist()
    plain = reference_logits(reference, prompt)[-1]
    assert round_weights(reference, linears) == count
    with open_session(bundle) as session:
        generation = session.complete(prompt, GenerateOptions(max_tokens=STEPS, keep_logits=True))
    assert generation.logits is not None
    tokens = list(generation.tokens)
    wanted = reference_logits(reference, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    assert np.abs(generation.logits - wanted).max() < 1e-3
    assert np.abs(generation.logits[0] - plain).max() > 5e-3, "rounding is to be seen"
    passes = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["passes"]
    done = [record["rewrites"] for record in passes if record["name"] == "annotate-int8-qdq"]
    assert done == [count, count]
