"""Every type of `frontend.quantize`, from the YAML to a bundle that says what its program says."""

import json
from pathlib import Path

import pytest
from built_bundles import TINY, BuiltBundles, in_this_process, write_words

from compiler.bundle_json import manifest_from_json
from compiler.config import BuildConfig, load_config
from compiler.contracts.bundle import MANIFEST_FILE, Manifest
from compiler.contracts.quantization import QUANTIZE_TYPES, QuantizeName
from compiler.workflows.build import BuildResult, build
from compiler.workflows.compare import compare
from compiler.workflows.comparing.inputs import InputOptions
from compiler.workflows.comparing.request import CompareRequest
from compiler.workflows.comparing.targets import TargetChoice

pytestmark = pytest.mark.slow

TARGETS = (TargetChoice("onnxruntime"), TargetChoice("tvm_llvm"))
# A code may tip over where a float differs in its last bit: one step of 127.
STEP = 0.02


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))


def config_of(built_bundles: BuiltBundles, folder: Path, **quantize: object) -> BuildConfig:
    path = built_bundles.variant(folder, name="quantized")
    write_words(folder / "data.txt", TINY.vocabulary)
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["frontend"]["quantize"] = quantize
    tree["backend"] |= {"dtype": "int8", "compute_dtype": "fp32"}
    tree["dataset"] = {"type": "text", "path": "data.txt", "nsamples": 3, "seqlen": 40}
    tree["workspace"] = {"path": str(folder / "workspace")}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return load_config(path)


def built(config: BuildConfig) -> tuple[BuildResult, Manifest]:
    with in_this_process():
        result = build(config)
    file = result.bundle / MANIFEST_FILE
    return result, manifest_from_json(file.read_bytes(), where=str(file))


def difference(config: BuildConfig) -> float:
    """Of the bundle's logits from its program's, over the largest of these."""
    request = CompareRequest(TARGETS, InputOptions(tokens=4))
    with in_this_process():
        (found,) = compare(config, request).comparisons
    assert found.passed
    return max(step.measures.max_rel for step in found.steps)


@pytest.mark.parametrize("name", sorted(QUANTIZE_TYPES))
def test_a_type_builds_and_its_bundle_does_what_its_program_does(
    built_bundles: BuiltBundles, tmp_path: Path, name: QuantizeName
):
    kind = QUANTIZE_TYPES[name]
    config = config_of(built_bundles, tmp_path, type=name)
    result, manifest = built(config)
    assert bool(result.calibrated) == (kind.weights == "gptq")
    assert ("calibration" in manifest.quantization) == (kind.weights == "gptq")
    is_rounded_as_it_runs = kind.has_int8_activations or kind.has_int8_cache
    assert difference(config) <= (STEP if is_rounded_as_it_runs else 1e-4)


def test_a_budget_keeps_modules_as_floats(built_bundles: BuiltBundles, tmp_path: Path):
    config = config_of(built_bundles, tmp_path, type="w8a16", target_loss=0.0)
    result, manifest = built(config)
    kept = manifest.quantization["kept_as_floats"]
    assert isinstance(kept, list)
    assert len(kept) == 7 * TINY.layers
    rewrites = {record.rewrites for record in result.passes if record.name == "annotate-int8-qdq"}
    assert rewrites == {0}
    assert difference(config) <= 1e-4
