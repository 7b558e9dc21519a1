"""Sections of quantization: what they hold, what they add to the passes, what is wrong in them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import CompilerError, CompilerErrors
from compiler.contracts.pass_base import Pass
from compiler.contracts.quantization import QUANTIZE_TYPES, SEVEN_LINEARS
from compiler.contracts.target_base import PassChoice
from compiler.workflows.pass_plan import planned_passes

TEXT = """\
frontend:
  checkpoint: weights
  type: huggingface
  shape:
    input_ids: [[512], [1024]]
  quantize: {quantize}
backend:
  type: {target}
  dtype: {dtype}
"""
TYPES = ("w8a16", "w8a16_gptq", "w8a8", "w16kv8", "w8a16kv8", "w8a16_gptq_kv8", "w8a8kv8")
Load = Callable[..., BuildConfig]
ErrorsOf = Callable[..., list[tuple[str, str, str | None]]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """What stands in `frontend.quantize`, a dtype, and more of the file -> BuildConfig."""
    monkeypatch.chdir(tmp_path)

    def loader(quantize: str, more: str = "", *, dtype: str = "int8", target: str = "llvm"):
        text = TEXT.format(quantize=quantize, dtype=dtype, target=target) + more
        Path("model.yaml").write_text(text, encoding="utf-8")
        return load_config(Path("model.yaml"))

    return loader


@pytest.fixture
def errors_of(load: Load) -> ErrorsOf:
    """The same -> (code, message, hint) of every error."""

    def errors(*given: str, **named: str) -> list[tuple[str, str, str | None]]:
        with pytest.raises(CompilerError) as caught:
            load(*given, **named)
        found = caught.value
        every = found.errors if isinstance(found, CompilerErrors) else (found,)
        return [(error.code, error.message, error.hint) for error in every]

    return errors


def added(config: BuildConfig) -> dict[str, dict[str, object]]:
    """The quantizer's passes and their options."""
    return {spec.name: dict(spec.options) for spec in config.quantizers}


# -- what is read


def test_the_types_are_those_of_the_contract():
    assert tuple(QUANTIZE_TYPES) == TYPES


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "int8") for kind in TYPES), ("w16kv8", "fp16")]
)
@pytest.mark.parametrize("dataset", ["c4", "ceval", "alpaca"])
def test_files_of_the_accelerator_s_zoo(load: Load, dataset: str, kind: str, dtype: str):
    """As they stand there, less what is not supported yet."""
    more = f"dataset: {{type: huggingface, name: {dataset}, path: d, nsamples: 128, seqlen: 512}}\n"
    quantize = f"{{type: {kind}, device: cuda, calib_args: {{true_sequential: false}}}}"
    config = load(quantize, more, dtype=dtype)
    assert config.frontend.quantize is not None
    assert (config.frontend.quantize.type, config.frontend.quantize.device) == (kind, "cuda")
    assert (config.dataset.name, config.dataset.nsamples) == (dataset, 128)


def test_every_key(load: Load):
    config = load(
        "{type: w8a16_gptq, device: 'cuda:1', include: [lm_head], exclude: ['*.0.*'], "
        "target_loss: 0.5, calib_args: {bits: 4, group_size: 32, act_order: false, damping: 0.5, "
        "true_sequential: true}}",
        "  compute_dtype: bf16\n"
        "dataset: {type: jsonl, path: text.jsonl, nsamples: 8, seqlen: 64, seed: 3}\n"
        "evaluate: {text: held_out.txt, tokens: 100, max_perplexity_increase: 0.01}\n",
    )
    quantize = config.frontend.quantize
    assert quantize is not None
    assert (quantize.device, quantize.target_loss) == ("cuda:1", 0.5)
    assert (quantize.include, quantize.exclude) == (("lm_head",), ("*.0.*",))
    assert quantize.calib_args.model_dump() == {
        "bits": 4,
        "group_size": 32,
        "act_order": False,
        "damping": 0.5,
        "true_sequential": True,
        "decode_activations": "int8",
    }
    assert (config.dataset.type, config.dataset.seed) == ("jsonl", 3)
    assert config.evaluate is not None
    assert config.evaluate.model_dump() == {
        "text": "held_out.txt",
        "tokens": 100,
        "max_perplexity_increase": 0.01,
    }
    options = config.target_options()
    assert options.compute_dtype == "bf16"
    asked = options.quantize
    assert asked is not None
    assert (asked.kind, asked.bits, asked.group_size) == (quantize.kind, 4, 32)
    modules = ("model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj", "lm_head", "model.norm")
    assert [asked.has_codes(module) for module in modules] == [True, False, True, False]
    assert options.places["frontend.quantize.calib_args.group_size"].startswith("model.yaml:6:")


def test_a_target_sees_a_cache_and_floats(load: Load):
    asked = load("{type: w16kv8}", dtype="fp16").target_options().quantize
    assert asked is not None
    assert asked.kind.has_int8_cache
    assert not asked.has_codes("model.layers.0.mlp.up_proj")


def test_no_absolute_path_of_a_text_is_resolved(load: Load):
    config = load("{type: w8a16}", "evaluate: {text: /home/user/held_out.txt}\n")
    assert config.resolved()["evaluate"] == {
        "text": "held_out.txt",
        "tokens": None,
        "max_perplexity_increase": None,
    }


# -- the passes


@pytest.mark.parametrize("kind", TYPES)
def test_the_passes_of_each_type(load: Load, kind: str):
    options = {"include": SEVEN_LINEARS, "exclude": (), "bits": 8, "group_size": 0}
    wanted: dict[str, dict[str, object]] = {}
    if kind != "w16kv8":
        wanted["annotate-int8-qdq"] = {
            **options,
            **({"activations": "int8"} if kind.startswith("w8a8") else {}),
        }
    if kind.endswith("kv8"):
        wanted["store-kv-cache"] = {"dtype": "int8"}
    assert added(load(f"{{type: {kind}}}")) == wanted


def test_the_passes_take_the_section_s_options(load: Load):
    found = added(
        load(
            "{type: w8a8, include: [lm_head, '*.x'], exclude: ['model.layers.0.*'], "
            "calib_args: {group_size: 64, decode_activations: float}}"
        )
    )
    assert found == {
        "annotate-int8-qdq": {
            "include": (*SEVEN_LINEARS, "lm_head", "*.x"),
            "exclude": ("model.layers.0.*",),
            "bits": 8,
            "group_size": 64,
            "activations": "int8-in-prefill",
        }
    }


def test_an_own_list_gets_them_unless_it_names_them(load: Load):
    config = load("{type: w8a16}", "passes: {order: [fold-mask]}\n")
    assert [spec.name for spec in config.pass_list] == ["fold-mask", "annotate-int8-qdq"]
    assert config.pass_list[1].place == "model.yaml:6:13"
    named = load("{type: w8a16}", "passes: {order: [annotate-int8-qdq: {bits: 4}, fold-mask]}\n")
    assert [spec.name for spec in named.pass_list] == ["annotate-int8-qdq", "fold-mask"]
    assert named.pass_list[0].options == {"bits": 4}
    assert named.quantizers == ()


@pytest.mark.parametrize(
    ("section", "order"),
    [
        ("{}", ("insert-strided-slice", "annotate-int8-qdq", "fuse-attention", "store-weights")),
        (
            "{order: [fold-mask, plan-kv-cache, fuse-attention, store-weights]}",
            ("plan-kv-cache", "fuse-attention", "annotate-int8-qdq", "store-weights"),
        ),
        (
            "{add: [cast-dtype: {dtype: bfloat16}]}",
            ("fuse-attention", "cast-dtype", "annotate-int8-qdq", "store-weights"),
        ),
    ],
)
def test_they_find_their_place(load: Load, section: str, order: tuple[str, ...]):
    config = load("{type: w8a16}", f"passes: {section}\n")
    choices = (PassChoice("fuse-attention"), PassChoice("store-weights"))
    planned = planned_passes(config, choices, target="tvm_llvm")
    assert tuple(one.rewrite.name for one in planned)[-4:] == order


def test_set_changes_what_the_section_asks_for(load: Load):
    text = "passes: {set: {annotate-int8-qdq: {operator: vastai}}}\n"
    planned = planned_passes(load("{type: w8a16}", text), (), target="tvm_llvm")
    rewriting: Pass = planned[-1].rewrite
    assert str(rewriting).endswith("operator='vastai')")


# -- what is wrong


@pytest.mark.parametrize(
    ("quantize", "code", "message", "hint"),
    [
        (
            "{type: w8a16_gtpq}",
            "bad-value",
            "frontend.quantize.type: the text 'w8a16_gtpq' is not one of " + ", ".join(TYPES),
            "did you mean 'w8a16_gptq'?",
        ),
        (
            "{device: cpu}",
            "missing-key",
            "the key 'frontend.quantize.type' is missing",
            "name the quantizer, or leave out the section 'quantize'",
        ),
        (
            "{type: w8a16, calib_args: {bits: 3}}",
            "bad-value",
            "frontend.quantize.calib_args.bits: the number 3 is not one of 8 or 4",
            "possible: 8 or 4",
        ),
        (
            "{type: w8a16, calib_args: {group_size: -1}}",
            "bad-value",
            "frontend.quantize.calib_args.group_size: -1 is less than 0",
            "at least 0",
        ),
        (
            "{type: w8a16, device: gpu}",
            "bad-value",
            "frontend.quantize.device: 'gpu' names no device",
            "write cpu, cuda, or cuda:1 for the second",
        ),
        (
            "{type: w8a16_gptq, calib_args: {grup_size: 8}}",
            "unknown-key",
            "unknown key 'grup_size' in 'frontend.quantize.calib_args'",
            "did you mean 'group_size'?",
        ),
        (
            "{type: w8a16, include: lm_head}",
            "wrong-type",
            "frontend.quantize.include: expected a list, got the text 'lm_head'",
            None,
        ),
        (
            "{type: w8a16, target_loss: -1}",
            "bad-value",
            "frontend.quantize.target_loss: -1 is less than 0.0",
            "at least 0.0",
        ),
        (
            "{type: w8a16_gptq, calib_args: {damping: 0}}",
            "bad-value",
            "frontend.quantize.calib_args.damping: 0 is not more than 0.0",
            "write a larger one",
        ),
    ],
)
def test_a_wrong_value(
    errors_of: ErrorsOf, quantize: str, code: str, message: str, hint: str | None
):
    assert errors_of(quantize) == [(code, message, hint)]


@pytest.mark.parametrize("kind", ["w8a16", "w8a16_gptq", "w8a8", "w8a16_gptq_kv8"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_int8_weights_need_int8(errors_of: ErrorsOf, kind: str, dtype: str):
    assert errors_of(f"{{type: {kind}}}", dtype=dtype) == [
        (
            "bad-value",
            f"frontend.quantize: int8 weights need backend.dtype int8, which is {dtype}",
            "write `dtype: int8`",
        )
    ]


def test_int8_needs_a_quantizer(errors_of: ErrorsOf):
    assert errors_of("null") == [
        (
            "bad-value",
            "backend.dtype: int8 needs a quantizer",
            "name one in frontend.quantize.type, for example w8a16_gptq",
        )
    ]


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_compute_dtype_is_for_int8(errors_of: ErrorsOf, load: Load, compute: str):
    more = f"  compute_dtype: {compute}\n"
    assert errors_of("null", more, dtype="fp32") == [
        (
            "bad-value",
            "backend.compute_dtype: it is for backend.dtype int8; elsewhere arithmetic is float32",
            "leave it out",
        )
    ]
    assert load("{type: w16kv8}", more).backend.compute_dtype == compute
    assert load("null", "  compute_dtype: fp32\n", dtype="bf16").backend.compute_dtype == "fp32"


@pytest.mark.parametrize(
    ("kind", "option", "key"),
    [
        ("w16kv8", "include: [lm_head]", "include"),
        ("w16kv8", "exclude: ['*']", "exclude"),
        ("w16kv8", "target_loss: 1.0", "target_loss"),
        ("w16kv8", "calib_args: {bits: 4}", "calib_args.bits"),
        ("w16kv8", "calib_args: {group_size: 8}", "calib_args.group_size"),
        ("w16kv8", "calib_args: {damping: 0.5}", "calib_args.damping"),
        ("w8a16", "calib_args: {act_order: true}", "calib_args.act_order"),
        ("w8a16kv8", "calib_args: {true_sequential: true}", "calib_args.true_sequential"),
        ("w8a8", "calib_args: {damping: 0.1}", "calib_args.damping"),
        ("w8a16_gptq", "calib_args: {decode_activations: int8}", "calib_args.decode_activations"),
        ("w16kv8", "calib_args: {decode_activations: int8}", "calib_args.decode_activations"),
    ],
)
def test_an_option_that_the_type_has_no_use_for(
    errors_of: ErrorsOf, kind: str, option: str, key: str
):
    assert errors_of(f"{{type: {kind}, {option}}}") == [
        ("bad-value", f"frontend.quantize.{key}: {kind} has no use for it", "leave it out")
    ]


@pytest.mark.parametrize("kind", ["w8a8", "w8a8kv8"])
def test_int8_activations_take_8_bits(errors_of: ErrorsOf, kind: str):
    assert errors_of(f"{{type: {kind}, calib_args: {{bits: 4}}}}") == [
        (
            "bad-value",
            f"frontend.quantize.calib_args.bits: {kind} takes 8 bits",
            "write `bits: 8`, or a w8a16 type",
        )
    ]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ("dataset: {type: parquet}\n", "bad-value", "dataset.type: the text 'parquet' is not one"),
        ("dataset: {name: c5}\n", "bad-value", "dataset.name: the text 'c5' is not one of c4, "),
        ("dataset: {seed: -1}\n", "bad-value", "dataset.seed: -1 is less than 0"),
        ("evaluate: {tokens: 5}\n", "missing-key", "the key 'evaluate.text' is missing"),
        ("evaluate: {text: a, tokens: 1}\n", "bad-value", "evaluate.tokens: 1 is less than 2"),
        ("evaluate: {text: a, txt: b}\n", "unknown-key", "unknown key 'txt' in 'evaluate'"),
        (
            "evaluate: {text: a, max_perplexity_increase: -0.1}\n",
            "bad-value",
            "evaluate.max_perplexity_increase: -0.1 is less than 0",
        ),
        ("evaluate: held_out.txt\n", "wrong-type", "evaluate: expected a section, got the text"),
    ],
)
def test_a_wrong_dataset_or_evaluation(errors_of: ErrorsOf, more: str, code: str, message: str):
    (found,) = errors_of("{type: w8a16}", more)
    assert found[0] == code
    assert found[1].startswith(message)


def test_a_faulty_type_is_said_once(errors_of: ErrorsOf):
    (found,) = errors_of("{type: int4, calib_args: {damping: 0.5}}", dtype="fp32")
    assert found[1].startswith("frontend.quantize.type: ")
