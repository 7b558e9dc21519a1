"""A damaged bundle says what is damaged; CPU features decide what is built and what runs."""

from pathlib import Path

import numpy as np
import pytest
from built_bundles import TINY, BuiltBundles, TinyModel
from compiler_process import run_compiler, run_json

from compiler.contracts.errors import BundleError, CompilerErrors, MachineLacks
from compiler.stages.execute import GenerateOptions
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.build import build
from compiler.workflows.run import open_session
from targets.llvm import runner as runner_module
from targets.llvm.features import CpuFeatures, detect

pytestmark = pytest.mark.slow

AVX2 = TinyModel("avx2", features=("avx2", "fma"))
PLAIN = TinyModel("plain", features=())
FILES = (
    "prefill_32_rank0/module.so",
    "decode_48_rank0/module.so",
    "params/rank0.safetensors",
    "manifest.json",
    "tokenizer.json",
    "chat_template.jinja",
    "config.json",
)


def flip_a_byte(path: Path) -> None:
    """Change one letter or byte in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    middle = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]).isalnum())
    data[middle] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named(built_bundles: BuiltBundles, tmp_path: Path, name: str) -> None:
    """A copy is another file, so that its parameters are hashed on this, its first opening."""
    bundle = built_bundles.copy(tmp_path / "copy")
    flip_a_byte(bundle / name)
    with pytest.raises(BundleError) as caught:
        open_session(bundle)
    assert caught.value.code == "bundle-damaged"
    assert caught.value.where == str(bundle / name)
    assert "changed" in caught.value.message or "not valid JSON" in caught.value.message


def test_parameters_that_change_after_an_opening(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    bundle = built_bundles.copy(tmp_path / "copy")
    arguments = ("run", bundle, "--token-ids", "1,2", "--max-tokens", "2")
    run_compiler(*arguments, cwd=tmp_path)
    run_compiler(*arguments, "--verify", cwd=tmp_path)
    flip_a_byte(bundle / "params" / "rank0.safetensors")
    found = run_json(*arguments, "--verify", cwd=tmp_path, code=2)
    assert [error["where"] for error in found["errors"]] == [  # type: ignore[attr-defined]
        str(bundle / "params" / "rank0.safetensors")
    ]


def test_a_build_does_not_call_a_damaged_bundle_up_to_date(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    bundle = built_bundles.copy(tmp_path / "copy")
    for name in ("tokenizer.json", "config.json"):
        flip_a_byte(bundle / name)
    with pytest.raises(CompilerErrors) as caught:
        build(built_bundles.config(), output=bundle)
    assert [error.where for error in caught.value.errors] == [
        str(bundle / "config.json"),
        str(bundle / "tokenizer.json"),
    ]
    hints = {error.hint for error in caught.value.errors}
    assert hints == {"replace the bundle with --force"}


def test_a_cpu_without_the_bundles_features_is_told_them(
    built_bundles: BuiltBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built_bundles.bundle(AVX2)
    monkeypatch.setattr(runner_module, "detect", lambda: CpuFeatures("x86_64", ("f16c",)))
    with pytest.raises(MachineLacks, match=r"built for a CPU with avx2, fma, which") as caught:
        open_session(bundle)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(bundle)
    assert "backend.compile.features" in str(caught.value.hint)


@pytest.mark.skipif(not {"avx2", "fma"} <= set(detect().flags), reason="needs AVX2 and FMA")
def test_declared_features_give_the_same_tokens(built_bundles: BuiltBundles) -> None:
    prompt = np.random.default_rng(0).integers(0, TINY.vocabulary, 37).tolist()
    options = GenerateOptions(max_tokens=10, keep_logits=True)
    found = {}
    for model in (TINY, AVX2, PLAIN):
        with open_session(built_bundles.bundle(model)) as session:
            found[model.name] = session.complete(prompt, options)
    assert found["tiny"].tokens == found["avx2"].tokens == found["plain"].tokens
    for name in ("avx2", "plain"):
        logits, wanted = found[name].logits, found["tiny"].logits
        assert logits is not None
        assert wanted is not None
        assert np.abs(logits - wanted).max() < 1e-4


def test_the_manifest_says_which_features(built_bundles: BuiltBundles) -> None:
    for model, flags in ((AVX2, ["avx2", "fma"]), (PLAIN, []), (TINY, list(detect().flags))):
        modules = open_bundle(built_bundles.bundle(model)).manifest.modules
        assert [module.target["features"] for module in modules] == [flags, flags]


def test_an_unknown_feature_is_refused_at_its_place(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    yaml = built_bundles.variant(tmp_path / "model", features=("avx2", "avx512_vni"))
    found = run_json("build", yaml, cwd=tmp_path, code=2)
    (error,) = found["errors"]  # type: ignore[misc]
    line = 1 + yaml.read_text().splitlines().index('    "compile": {')
    assert error["where"].startswith(f"{yaml}:{line + 1}:")
    assert "avx512_vni" in error["message"]
    assert "avx512_vnni" in error["hint"]
    assert not (tmp_path / "model" / "workspace").exists()
