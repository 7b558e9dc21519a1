"""Lengths that people build: a pass does to the model what it does to the probe, which is short."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from built_bundles import TinyModel, in_this_process, write_tiny, write_yaml
from exported_models import write_export

from compiler.config import load_config
from compiler.contracts.progress import Progress
from compiler.stages.rewrite import rewrite
from compiler.workflows.frontend import enter, locate
from compiler.workflows.plan import plan_build

pytestmark = pytest.mark.slow

LENGTHS = [(1024, 1280), (512, None)]
ADDED = ("fuse-qkv", "fuse-gate-up", "fuse-rotary", "pad-vocabulary", "annotate-int8-qdq")


def rewrite_on_probe(yaml: Path) -> None:
    config = replace(load_config(yaml), verify="probe")
    checkpoint = locate(config, progress=Progress())
    passes = plan_build(config, checkpoint).passes
    with in_this_process():
        entered = enter(config, checkpoint)
    records = rewrite(entered.programs, passes, probe=entered.probe).records
    assert all(record.error is not None for record in records)


@pytest.mark.parametrize(("window", "context"), LENGTHS)
@pytest.mark.parametrize("variant", ["", "qwen3-sliding", "dynamic", "logn"])
def test_a_traced_model(tmp_path: Path, variant: str, window: int, context: int | None) -> None:
    model = TinyModel(
        variant=variant, window=window, context=context, added=() if variant else ADDED
    )
    checkpoint = write_tiny(tmp_path / "checkpoint", model)
    rewrite_on_probe(write_yaml(tmp_path / "model.yaml", model, checkpoint))


@pytest.mark.parametrize(("window", "context"), LENGTHS)
@pytest.mark.parametrize("export", ["eager_18", "sdpa_23"])
def test_an_export(tmp_path: Path, export: str, window: int, context: int | None) -> None:
    tree = {
        "frontend": {
            "type": "onnx",
            "checkpoint": str(write_export(tmp_path / "model.onnx", export)),
            "shape": {"input_ids": [[window], [] if context is None else [context]]},
        },
        "backend": {"type": "tvm_llvm"},
        "workspace": {"path": str(tmp_path / "workspace")},
    }
    yaml = tmp_path / "model.yaml"
    yaml.write_text(json.dumps(tree))
    rewrite_on_probe(yaml)
