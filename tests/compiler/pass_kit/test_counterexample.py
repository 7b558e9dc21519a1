"""A case is written as ONNX text and read back as the same case."""

from pathlib import Path

import onnx.parser
import pytest

from compiler.contracts.errors import ConfigError
from compiler.numerics.reference_run import run_model
from compiler.pass_kit import Case, check_pass, draw_recipe, text_of
from compiler.pass_kit.counterexample import case_text, read_case
from passes.fuse_attention import FuseAttention
from passes.keep_qkv_bias import KeepQKVBias
from passes.store_weights import StoreWeights


def drawn(seed: int) -> Case:
    """A block that some passes have rewritten, fused operators among them."""
    case = draw_recipe(StoreWeights(), seed=seed).case()
    assert case is not None
    return case


@pytest.mark.parametrize("seed", range(6))
def test_what_is_read_back_gives_the_same_numbers(seed: int, tmp_path: Path):
    case = drawn(seed)
    file = tmp_path / "case.txt"
    file.write_text(case_text(case, remarks=["one line", "two\nlines"]), encoding="utf-8")
    back = read_case(file)
    assert text_of(back.program) == text_of(case.program)
    assert (back.lengths, back.seed, back.vocabulary) == (case.lengths, case.seed, case.vocabulary)
    assert back.program.aliases == case.program.aliases
    assert back.program.functions.keys() == case.program.functions.keys()
    for lengths in case.lengths:
        wanted, found = (
            run_model(one.program.model(), {**one.parameters(one.program), **one.inputs(lengths)})
            for one in (case, back)
        )
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in wanted.items()
        }
    assert case_text(back, remarks=[]) == "".join(
        file.read_text(encoding="utf-8").splitlines(keepends=True)[3:]
    )


def test_the_text_is_onnx_text():
    text = case_text(drawn(1), remarks=["a remark"])
    assert text.startswith("# a remark\n<\n   ir_version: 10,")
    model = onnx.parser.parse_model(text)
    assert [entry.key for entry in model.metadata_props] == ["graphlower.case"]


def test_promises_of_earlier_passes_are_kept(tmp_path: Path):
    recipes = (draw_recipe(FuseAttention(), seed=seed) for seed in range(50))
    case = next(
        case
        for recipe in recipes
        if recipe.options.biases
        and any(isinstance(one, KeepQKVBias) for one in recipe.earlier)
        and (case := recipe.case()) is not None
    )
    file = tmp_path / "case.txt"
    file.write_text(case_text(case, remarks=[]), encoding="utf-8")
    back = read_case(file)
    assert [guard.name for guard in back.guards] == ["keep-qkv-bias"]
    assert back.invariants() == case.invariants()
    assert check_pass(FuseAttention(), back) == check_pass(FuseAttention(), case)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def run(): pass", "is not ONNX text: "),
        (b"\xff\xfe", "is not UTF-8"),
        (
            b'<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] y)'
            b"{ y = Neg (x) }",
            "has no property 'graphlower.case' that can be read: Invalid JSON",
        ),
    ],
)
def test_another_file_is_refused(content: bytes, message: str, tmp_path: Path):
    file = tmp_path / "other.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_case(file)
    assert raised.value.message.startswith(message)
    assert raised.value.where == str(file)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_case(tmp_path / "none.txt")
