"""The declared format: what it resolves to, its digest, its places."""

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from compiler.config import CompareLimits, load_config
from compiler.config.compare_section import COMPARE_DEFAULTS
from compiler.config.rules import NOT_SUPPORTED_YET
from compiler.contracts.errors import CompilerError, CompilerErrors

ROOT = Path(__file__).parents[2]
MINIMAL = """\
frontend:
  checkpoint: weights
  type: huggingface
  shape:
    input_ids: [[64], [128]]
backend:
  type: llvm
"""

# Every key of the declared format, with values as the public YAMLs have them.
ZOO = """\
name: Qwen2-7B-int8-tp4-1024-2048

frontend:
  checkpoint: /media/models/Qwen/Qwen2-7B
  type: huggingface

  shape:
    input_ids: [[1024], [2048]]

  model_kwargs:
    b2s: true
    tp: 4
    model_arch: vacc
    align_qkv: true
    insert_slice: true
  quantize:
    type: w8a16_gptq
    device: cuda
    calib_args: {true_sequential: false}

backend:
  type: tvm_vacc
  dtype: int8
  compute_dtype: fp16
  merge_params: false
  compile:
    data_type: 0
    gather_data_vccl_dsp_enable: true
    regions: [a, b]

dataset:
  type: huggingface
  name: c4
  path: /data/c4
  nsamples: 64
  seqlen: 256

workspace:
  path: ./vacc_deploy
  workers: 4
  work_dir: scratch
  env_recheck: false
  pyenv: base
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Text -> BuildConfig of model.yaml."""
    monkeypatch.chdir(tmp_path)

    def loader(text: str, *, overrides: tuple[str, ...] = (), target: str | None = None):
        Path("model.yaml").write_text(text)
        return load_config(Path("model.yaml"), overrides=overrides, target=target)

    return loader


def errors_of(load, text: str) -> list[tuple[str | None, str, str]]:
    """(where, code, message) of every error."""
    with pytest.raises(CompilerError) as caught:
        load(text)
    found = caught.value
    errors = found.errors if isinstance(found, CompilerErrors) else (found,)
    return [(error.where, error.code, error.message) for error in errors]


@pytest.fixture
def everything_built(monkeypatch: pytest.MonkeyPatch):
    """Lifts the limits of today, so that the whole format can be seen to parse."""
    monkeypatch.setattr("compiler.config.rules.NOT_SUPPORTED_YET", ())


def test_a_minimal_file_and_its_defaults(load, tmp_path):
    config = load(MINIMAL)
    assert (config.name, config.path) == ("model", Path("model.yaml"))
    assert config.backend.type == "tvm_llvm"
    assert (config.backend.dtype, config.backend.compute_dtype) == ("fp32", None)
    assert config.backend.merge_params is True
    shape = config.frontend.shape
    assert (shape.window, shape.context, shape.context_or_window) == (64, 128, 128)
    assert config.passes.order is None
    assert config.verify == "probe"
    assert (config.workspace.path, config.workspace.workers) == ("build", 2)
    assert config.workspace_path == tmp_path / "build"
    assert config.compare.max_abs == 2e-3
    assert config.checkpoint == str(tmp_path / "weights")


def test_every_key_of_the_declared_format_is_kept(load, everything_built):
    resolved = load(ZOO).resolved()
    assert resolved["name"] == "Qwen2-7B-int8-tp4-1024-2048"
    assert resolved["frontend"] == {
        "checkpoint": "Qwen2-7B",
        "type": "huggingface",
        "shape": {"input_ids": [[1024], [2048]], "batch": 1},
        "model_kwargs": {
            "tp": 4,
            "b2s": True,
            "model_arch": "vacc",
            "align_qkv": True,
            "insert_slice": True,
        },
        "quantize": {
            "type": "w8a16_gptq",
            "device": "cuda",
            "calib_args": {
                "bits": 8,
                "group_size": 0,
                "act_order": True,
                "damping": 0.01,
                "true_sequential": False,
                "decode_activations": "int8",
            },
            "include": [],
            "exclude": [],
            "target_loss": None,
        },
    }
    assert resolved["backend"] == {
        "type": "tvm_vacc",
        "dtype": "int8",
        "compute_dtype": "fp16",
        "merge_params": False,
        "compile": {"data_type": 0, "gather_data_vccl_dsp_enable": True, "regions": ["a", "b"]},
    }
    assert resolved["dataset"] == {
        "type": "huggingface",
        "name": "c4",
        "path": "c4",
        "nsamples": 64,
        "seqlen": 256,
        "seed": 0,
    }
    assert resolved["evaluate"] is None
    assert "workspace" not in resolved
    workspace = load(ZOO).workspace
    assert (workspace.path, workspace.workers, workspace.pyenv) == ("./vacc_deploy", 4, "base")
    assert (workspace.work_dir, workspace.env_recheck) == ("scratch", False)


def test_the_declared_format_is_built():
    assert [limit.key for limit in NOT_SUPPORTED_YET] == ["frontend.type"]


SHAPE = "  shape:\n    input_ids: [[64], [128]]\n"
BATCH = "  model_kwargs: {b2s: %s}\n  shape: {batch: %s, input_ids: [[64], %s]}\n"


def of_batch(b2s: str, batch: str, context: str = "[128]") -> str:
    return MINIMAL.replace(SHAPE, BATCH % (b2s, batch, context))


def test_several_prompts_at_once_are_asked_for_twice(load):
    assert load(MINIMAL).frontend.shape.batch == 1
    for b2s, batch in (("true", "4"), ("true", "1"), ("false", "1")):
        config = load(of_batch(b2s, batch))
        assert config.frontend.shape.batch == int(batch)
        assert config.target_options().batch == int(batch)
        assert config.target_options().places["frontend.shape.batch"] == config.place(
            "frontend.shape.batch"
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (of_batch("false", "2"), "2 prompts at once are the batch folded into the sequence"),
        (of_batch("true", "2", "[]"), "2 prompts are decoded at once, and prefill alone is built"),
        (of_batch("true", "0"), "0 is less than 1"),
    ],
)
def test_a_batch_that_cannot_be_served_is_refused(load, text: str, said: str):
    ((where, code, message),) = errors_of(load, text)
    assert where is not None
    assert code == "bad-value"
    assert message.startswith("frontend.shape.batch: ")
    assert said in message


def test_a_model_arch_but_the_accelerators_is_refused(load):
    found = errors_of(
        load, MINIMAL.replace("  shape:", "  model_kwargs: {model_arch: cuda}\n  shape:")
    )
    (_, code, message) = found[0]
    assert (len(found), code) == (1, "bad-value")
    assert message == "frontend.model_kwargs.model_arch: the text 'cuda' is not one of vacc"


def test_keys_of_the_vendors_tool_are_named_as_without_effect(load):
    assert load(MINIMAL).without_effect() == ()
    config = load(MINIMAL + "workspace: {env_recheck: false, pyenv: base}\n")
    assert config.without_effect() == ("workspace.env_recheck", "workspace.pyenv")


def test_the_scratch_folder_is_relative_to_the_current_one(load, tmp_path):
    assert load(MINIMAL).scratch_folder is None
    config = load(MINIMAL + "workspace: {work_dir: scratch}\n")
    assert config.scratch_folder == tmp_path / "scratch"
    assert config.digest() == load(MINIMAL).digest()


@pytest.mark.parametrize("limit", NOT_SUPPORTED_YET, ids=lambda limit: limit.key)
def test_what_each_limit_supports_is_what_the_hint_says(limit):
    names = [str(v).lower() for v in limit.supported if v is not None]
    assert limit.hint in (f"supported: {', '.join(names)}", "leave it out", "leave the section out")


def test_an_empty_context_is_prefill_only(load):
    shape = load(MINIMAL.replace("[128]", "[]")).frontend.shape
    assert (shape.window, shape.context, shape.context_or_window) == (64, None, 64)


def test_an_empty_key_is_as_good_as_absent(load):
    text = MINIMAL + "  compile:\n  dtype: null\nworkspace:\ndataset:\n  name:\n"
    assert load(text).resolved() == load(MINIMAL).resolved()


def test_the_checkpoint_is_found_from_the_yaml_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)

    def checkpoint(written: str) -> str:
        Path("sub/m.yaml").write_text(MINIMAL.replace("weights", written))
        return load_config(Path("sub/m.yaml")).checkpoint

    assert checkpoint("../up") == str(tmp_path / "up")
    assert checkpoint("/abs/x") == "/abs/x"
    assert checkpoint("~/x") == str(Path.home() / "x")
    assert checkpoint("pypi:a-b==1.2#c/d.gguf") == "pypi:a-b==1.2#c/d.gguf"


def test_the_digest_is_that_of_what_decides_the_bundle(load, tmp_path):
    digest = load(MINIMAL).digest()
    resolved, measured = load(MINIMAL).resolved(), ("compare", "evaluate")
    plain = {key: value for key, value in resolved.items() if key not in measured}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    same = MINIMAL + "workspace: {workers: 7}\ncompare: {max_abs: 0.5}\n# a comment\n"
    same += "evaluate: {text: held_out.txt}\n"
    assert load(same).digest() == digest
    assert load(MINIMAL.replace("llvm", "tvm_llvm")).digest() == digest
    there = tmp_path / "elsewhere" / "model.yaml"
    there.parent.mkdir()
    there.write_text(MINIMAL)
    assert load_config(there).digest() == digest
    changes = ("name=other", "backend.dtype=bf16", "verify=off", "backend.compile.x=1")
    for change in (*changes, "dataset.seed=1", "frontend.quantize.type=w16kv8"):
        assert load(MINIMAL, overrides=(change,)).digest() != digest


def test_no_absolute_path_is_resolved(load):
    text = MINIMAL.replace("weights", "/home/user/weights") + "dataset: {path: /data/c4}\n"
    assert "/home" not in json.dumps(load(text).resolved())
    assert load(text).frontend.checkpoint == "/home/user/weights"


def test_overrides_and_target(load):
    config = load(MINIMAL, overrides=("backend.dtype=bf16", "name=x"), target="torch")
    assert (config.name, config.backend.dtype, config.backend.type) == ("x", "bf16", "torch")
    assert config.place("backend.type") == "--target"
    assert config.place("backend.dtype") == "--set backend.dtype"
    assert config.place("frontend.shape.input_ids.1") == "model.yaml:5:23"
    assert config.place("backend.compile.threads") == "model.yaml:6:1"


def test_the_target_sees_its_options_and_their_places(load):
    options = load(MINIMAL + "  compile: {threads: 2, cpu: [a]}\n").target_options()
    assert (options.dtype, options.window, options.context) == ("fp32", 64, 128)
    assert options.compile == {"threads": 2, "cpu": ("a",)}
    assert options.places["backend.compile.threads"] == "model.yaml:8:22"


def test_comparison_limits_follow_the_dtype_and_the_yaml(load):
    config = load(MINIMAL, overrides=("backend.dtype=bf16", "compare.max_abs=0.25"))
    assert config.compare.max_abs == 0.25
    assert config.compare.max_rel == 8e-2
    assert load(MINIMAL).compare.min_greedy == 0.99


def test_every_comparison_limit_can_be_set(load):
    given = {
        "max_abs": 0.25,
        "max_rel": 0.125,
        "min_cosine": 0.5,
        "max_kl": 0.375,
        "min_top1": 0.625,
        "min_top5": 0.75,
        "min_greedy": 0.875,
        "max_local": 0.0625,
        "max_perplexity_increase": 0.03125,
    }
    overrides = tuple(f"compare.{key}={value}" for key, value in given.items())
    assert load(MINIMAL, overrides=overrides).compare.model_dump() == given


def test_a_coarser_dtype_is_allowed_more():
    """In the order of their unit roundoff; no limit of logits is tighter for a coarser dtype."""
    order = [COMPARE_DEFAULTS[dtype] for dtype in ("fp32", "fp16", "bf16", "int8")]
    for finer, coarser in pairwise(order):
        for key, value in coarser:
            allowed, more = getattr(finer, key), value
            assert more <= allowed if key.startswith("min_") else more > allowed, key
    assert {limits.min_top1 for limits in order} == {1.0}


def test_the_documented_limits_are_the_defaults():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = page.partition("## compare\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]+)\|([^|]+)\|([^|]+)\|([^|]+)\|", section, re.M)
    documented = {key: [float(value) for value in values] for key, *values in rows}
    dtypes = ("fp32", "fp16", "bf16", "int8")
    assert documented == {
        key: [getattr(COMPARE_DEFAULTS[dtype], key) for dtype in dtypes]
        for key in CompareLimits.model_fields
    }


def test_verify_off_needs_no_quotes(load):
    assert load(MINIMAL + "verify: off\n").verify == "off"
    assert load(MINIMAL + "verify: 'off'\n").verify == "off"


def test_a_config_is_frozen(load):
    config = load(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.backend.dtype = "bf16"
    with pytest.raises(AttributeError):
        config.name = "other"
