"""A causal mask with right padding becomes one operator of two lengths; nothing else does."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from attention_graph import ALLOWED, LENGTHS, TEXT, random_inputs, windowed
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase, Program, TensorSpec
from compiler.numerics.reference_run import run_model
from passes import _mask_arithmetic
from passes.fold_mask import CAUSAL_MASK, FoldMask

LOWEST = float(np.finfo(np.float32).min)


def with_length(op: str) -> dict[str, str]:
    """What to replace in TEXT so that angles are scaled by what `op` makes of the mask."""
    return {
        '["rotary/Sin"] sines = Sin (angles)': (
            f'["rotary/Length"] seen = {op}\n'
            '["rotary/Cast_1"] many = Cast <to: int = 1> (seen)\n'
            '["rotary/Mul"] turned = Mul (angles, many)\n'
            '["rotary/Sin"] sines = Sin (turned)'
        )
    }


def masks(program: Program) -> list[gs.Node]:
    return [node for node in program.graph.nodes if node.op == "CausalMask"]


def assert_same_bits(text: str, *, tokens: int = 4, context: int = 10) -> Program:
    """Fold, and compare on every length that fits; the folded program."""
    lengths = [(0, tokens), (0, 1), (context - tokens, tokens), (context - tokens, 1)]
    lengths += [(past, valid) for past, valid in LENGTHS if tokens == 4]
    program = program_from_text(text, tokens=tokens, context=context)
    inputs = [random_inputs(program, past=past, valid=valid) for past, valid in lengths]
    wanted = [run_program(program, given) for given in inputs]
    report = run_pass(FoldMask(), program)
    assert report.skips == ()
    assert report.rewrites
    for given, outputs in zip(inputs, wanted, strict=True):
        found = run_program(program, FoldMask().adapt_inputs(given, program))
        for name, value in outputs.items():
            assert np.isfinite(value).all()
            assert found[name].tobytes() == value.tobytes(), name
    return program


def test_golden(golden: Golden):
    program = program_from_text(TEXT)
    report = run_pass(FoldMask(), program)
    golden("fold-mask.after.txt", text_of(program))
    assert report.rewrites == ("mask",)
    assert report.skips == ()
    assert program.functions == {"CausalMask": CAUSAL_MASK}


def test_a_second_run_rewrites_nothing():
    program = program_from_text(TEXT)
    run_pass(FoldMask(), program)
    once = text_of(program)
    assert reasons(run_pass(FoldMask(), program)) == {
        "graph": "there is no attention_mask and position_ids input"
    }
    assert text_of(program) == once


@pytest.mark.parametrize(("past", "valid"), LENGTHS)
def test_the_small_graph_gives_the_same_bits(past: int, valid: int):
    program = program_from_text(TEXT)
    inputs = random_inputs(program, past=past, valid=valid)
    old = run_program(program, inputs)
    run_pass(FoldMask(), program)
    adapted = FoldMask().adapt_inputs(inputs, program)
    assert adapted["past_length"].tolist() == [past]
    assert adapted["valid_length"].tolist() == [valid]
    found = run_program(program, adapted)
    wanted = FoldMask().adapt_outputs(old, inputs, program)
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
    ("phase", "past", "valid"),
    [
        ("prefill", 0, WINDOW),
        ("prefill", 0, 3),
        ("prefill", 20, 7),
        ("decode", 0, 1),
        ("decode", 39, 1),
    ],
)
def test_traced_models_give_the_same_bits(
    traced_models: TracedModels, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs("gqa").programs[phase],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)
    assert len(run_pass(FoldMask(), program).rewrites) == 1
    found = run_program(program, FoldMask().adapt_inputs(inputs, program), checkpoint)
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name


def test_signature_after(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["decode"]
    run_pass(FoldMask(), program)
    names = [spec.name for spec in program.inputs()]
    assert program.inputs()[:3] == (
        TensorSpec("input_ids", "int64", (1, 1)),
        TensorSpec("past_length", "int64", (1,)),
        TensorSpec("valid_length", "int64", (1,)),
    )
    assert names[3:] == [
        f"past_key_values.{i}.{kind}" for i in range(2) for kind in ("key", "value")
    ]


def test_a_window_over_the_limit_of_constants():
    text = changed(
        TEXT, {"[1, 4": "[1, 160", "past + 4": "past + 160", "tokens = {4}": "tokens = {160}"}
    )
    text = changed(text, {"{1, 4, ": "{1, 160, ", "2, 4, 3}": "2, 160, 3}"})
    program = program_from_text(text, tokens=160, context=200)
    inputs = random_inputs(program, past=11, valid=150)
    wanted = run_program(program, inputs)
    run_pass(FoldMask(), program)
    found = run_program(program, FoldMask().adapt_inputs(inputs, program))
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name


def test_masks_of_more_axes_and_several_of_them():
    text = changed(
        TEXT,
        {
            '["attn/Add_1"] masked = Add (scores, mask)': (
                '["mask/Unsqueeze_1"] mask_4d = Unsqueeze (mask, both)\n'
                '["attn/Add_1"] once = Add (mask_4d, scores)\n'
                '["mask/Mul"] half = Mul (mask, scale)\n'
                '["attn/Add_2"] masked = Add (once, half)'
            ),
            "int64 zero = {0}": "int64 zero = {0}, int64[2] both = {0, 1}",
        },
    )
    program = program_from_text(text)
    inputs = random_inputs(program, past=2, valid=3)
    wanted = run_program(program, inputs)
    assert run_pass(FoldMask(), program).rewrites == ("mask_4d", "half")
    assert [node.attrs["blocked"] for node in masks(program)] == [LOWEST, LOWEST / 2]
    found = run_program(program, FoldMask().adapt_inputs(inputs, program))
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
    ("window", "wanted"),
    [
        (0, [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]),
        (2, [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]),
    ],
)
def test_the_function_is_causal_with_right_padding(window: int, wanted: list[list[int]]):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "graphlower" : 1]>\n'
        "main (int64[6] columns, int64[1] past_length, int64[1] valid_length)\n"
        "=> (float[4, 6] mask) { mask = graphlower.CausalMask "
        f"<tokens: int = 4, window: int = {window}, blocked: float = -9.0> "
        "(columns, past_length, valid_length) }"
    )
    model.functions.append(CAUSAL_MASK)
    lengths = {"past_length": np.array([2]), "valid_length": np.array([2])}
    found = run_model(model, {"columns": np.arange(6), **lengths})["mask"]
    assert (found == 0).astype(int).tolist() == wanted
    assert set(found[found != 0].tolist()) == {-9.0}


# -- sliding windows

ONE_TOKEN = {
    "[1, 4": "[1, 1",
    "past + 4": "past + 1",
    "tokens = {4}": "tokens = {1}",
    "{1, 4, ": "{1, 1, ",
    "2, 4, 3}": "2, 1, 3}",
}


# Padding lies past the edge of a short window, and past the context with the longest.
@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 12])
def test_a_sliding_window(size: int):
    program = assert_same_bits(changed(TEXT, windowed(size)))
    assert [node.attrs["window"] for node in masks(program)] == [size]


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_sliding_window_of_one_token(size: int):
    program = assert_same_bits(changed(changed(TEXT, ONE_TOKEN), windowed(size)), tokens=1)
    assert [node.attrs["window"] for node in masks(program)] == [size]


@pytest.mark.parametrize(("tokens", "size"), [(4, 13), (4, 4096), (1, 10), (1, 11)])
def test_a_window_that_no_row_reaches_is_none(tokens: int, size: int):
    text = TEXT if tokens == 4 else changed(TEXT, ONE_TOKEN)
    program = assert_same_bits(changed(text, windowed(size)), tokens=tokens)
    assert [node.attrs["window"] for node in masks(program)] == [0]


@pytest.mark.parametrize("size", [3, 4, 5, 7, 12, 13])
def test_a_window_past_what_is_evaluated_at_once(monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(_mask_arithmetic, "_ENTRIES", 8)
    program = program_from_text(changed(TEXT, windowed(size)))
    run_pass(FoldMask(), program)
    assert [node.attrs["window"] for node in masks(program)] == [size % 13]


def test_each_mask_has_a_window_of_its_own():
    text = changed(
        TEXT,
        {
            '["mask/Where"] mask': (
                '["mask/Sub"] edge = Sub (rows, three)\n'
                '["mask/Greater"] near = Greater (columns, edge)\n'
                '["mask/And_1"] band = And (allowed, near)\n'
                '["mask/Where_1"] second = Where (band, open, blocked)\n'
                '["mask/Where"] mask'
            ),
            "masked = Add (scores, mask)": (
                'once = Add (scores, second)\n["attn/Add_2"] masked = Add (once, mask)'
            ),
            "int64 zero = {0}": "int64 zero = {0}, int64 three = {3}",
            "blocked = {-3.4028235e+38}": "blocked = {-1e30}",
        },
    )
    program = assert_same_bits(text)
    assert [node.attrs["window"] for node in masks(program)] == [3, 0]


def test_golden_of_a_window_and_a_length(golden: Golden):
    text = changed(TEXT, windowed(3))
    text = changed(text, with_length("ReduceSum <keepdims: int = 0> (attention_mask, axis)"))
    program = program_from_text(text)
    report = run_pass(FoldMask(), program)
    golden("fold-mask.window-and-length.txt", text_of(program))
    assert report.rewrites == ("mask", "seen")


# -- lengths


@pytest.mark.parametrize(
    ("op", "rank"),
    [
        ("ReduceSum <keepdims: int = 0> (attention_mask, axis)", 1),
        ("ReduceSum <keepdims: int = 1> (attention_mask, axis)", 2),
        ("ReduceSum <keepdims: int = 0> (attention_mask)", 0),
    ],
)
def test_a_length_is_recognised_whatever_its_axes(op: str, rank: int):
    program = assert_same_bits(changed(TEXT, with_length(op)))
    (node,) = [node for node in program.graph.nodes if node.name == "model.mask/filled"]
    assert [tensor.name for tensor in node.inputs] == ["past_length", "valid_length"]
    (reader,) = node.outputs[0].outputs
    assert reader.op == ("Cast" if rank == 1 else "Reshape")
    assert "attention_mask" not in {tensor.name for tensor in program.graph.inputs}


def test_what_is_made_of_a_length_stays():
    op = 'ReduceSum <keepdims: int = 0> (attention_mask, axis)\n["n/Sub"] less = Sub (seen, one)'
    text = changed(changed(TEXT, with_length(op)), {"int = 1> (seen)": "int = 1> (less)"})
    program = assert_same_bits(text)
    assert "n/Sub" in {node.name for node in program.graph.nodes}


@pytest.mark.parametrize(
    "op",
    [
        "ReduceMin <keepdims: int = 0> (attention_mask)",
        # As many as there are columns, padding too.
        "Size (attention_mask)",
    ],
)
def test_what_is_no_length_is_named(op: str):
    text = changed(TEXT, with_length(op))
    program = program_from_text(changed(text, {"Add (embedded, sines)": "Mul (embedded, sines)"}))
    before = text_of(program)
    assert reasons(run_pass(FoldMask(), program)) == {
        "attention_mask": "rotary/Length makes neither a mask of it nor its length, past + valid"
    }
    assert text_of(program) == before


# -- float16


def test_a_mask_in_half_precision_leaves_room_for_the_score():
    text = changed(
        TEXT,
        {
            # The parser takes the bits: 64511 is -65504.
            "float open = {0}, float blocked = {-3.4028235e+38}": (
                "float16 open = {0}, float16 blocked = {64511}"
            ),
            "masked = Add (scores, mask)": (
                'half = Cast <to: int = 10> (scores)\n["attn/Add_2"] sum = Add (half, mask)\n'
                '["attn/Cast_2"] masked = Cast <to: int = 1> (sum)'
            ),
        },
    )
    program = assert_same_bits(changed(text, {"scale = {0.5}": "scale = {100}"}))
    (node,) = masks(program)
    assert node.attrs["blocked"] == -32768.0
    (cast,) = node.outputs[0].outputs
    assert (cast.name, cast.attrs["to"]) == ("model.mask/Cast", onnx.TensorProto.FLOAT16)


# -- what is declined

SHUT = "is -3.40282e+38 where a causal mask is open"


DECLINED = {
    "one entry too few": (
        {"LessOrEqual (columns, rows)": "Less (columns, rows)"},
        "with 0 past and 1 valid tokens, row 0 column 0 " + SHUT,
    ),
    "one entry too many": (
        {
            '["mask/LessOrEqual"] causal = LessOrEqual (columns, rows)': (
                '["mask/Add_1"] later = Add (rows, one)\n'
                '["mask/LessOrEqual"] causal = LessOrEqual (columns, later)'
            )
        },
        "with 0 past and 2 valid tokens, row 0 column 1 is 0 where a causal mask is blocked",
    ),
    "no causality": (
        {ALLOWED: '["mask/And"] allowed = And (real, real)'},
        "its shape is (1, 4) for 0 past tokens, expected (4, 4)",
    ),
    "padding is seen": (
        {ALLOWED: '["mask/Or"] allowed = Or (causal, real)'},
        "with 0 past and 1 valid tokens, row 1 column 1 is 0 where a causal mask is blocked",
    ),
    "chunks": (
        {
            ALLOWED: (
                '["mask/Div"] chunk = Div (rows, three)\n'
                '["mask/Mul_1"] edge = Mul (chunk, three)\n'
                '["mask/GreaterOrEqual"] near = GreaterOrEqual (columns, edge)\n'
                '["mask/And_1"] band = And (causal, near)\n'
                '["mask/And"] allowed = And (band, real)'
            ),
            "int64 zero = {0}": "int64 zero = {0}, int64 three = {3}",
        },
        "with 0 past and 1 valid tokens, row 1 column 0 is 0 where a causal mask with a window "
        "of 1 is blocked",
    ),
    "infinite": (
        {
            "Where (allowed, open, blocked)": "Where (allowed, open, closed)",
            '["mask/Where"]': '["mask/Log"] closed = Log (open)\n["mask/Where"]',
        },
        "blocked entries go from -inf to -inf, expected one finite value",
    ),
    "several values": (
        {
            '["attn/Add_1"] masked = Add (scores, mask)': (
                '["mask/Cast_1"] number = Cast <to: int = 1> (rows)\n'
                '["mask/Sub"] graded = Sub (number, large)\n'
                '["mask/Where_1"] uneven = Where (allowed, open, graded)\n'
                '["attn/Add_1"] masked = Add (scores, uneven)'
            ),
            "int64 zero = {0}": "int64 zero = {0}, float large = {1000}",
        },
        "blocked entries go from -1000 to -988, expected one finite value",
    ),
    "it reads the tokens": (
        {
            ALLOWED: (
                '["mask/ReduceMax"] most = ReduceMax <keepdims: int = 0> (input_ids)\n'
                '["mask/LessOrEqual_1"] few = LessOrEqual (columns, most)\n'
                '["mask/And_1"] band = And (causal, few)\n'
                '["mask/And"] allowed = And (band, real)'
            )
        },
        "it depends on input_ids",
    ),
    "it reads a weight": (
        {
            ALLOWED: (
                '["mask/ReduceMax"] most = ReduceMax <keepdims: int = 0> ("embed.weight")\n'
                '["mask/Cast_1"] few = Cast <to: int = 9> (most)\n'
                '["mask/And_1"] band = And (causal, few)\n'
                '["mask/And"] allowed = And (band, real)'
            )
        },
        "it depends on embed.weight",
    ),
    "one for each head": (
        {
            '["attn/Add_1"] masked = Add (scores, mask)': (
                '["mask/Expand"] each = Expand (mask, expanded)\n'
                '["attn/Add_1"] masked = Add (scores, each)'
            ),
            "int64 zero = {0}": "int64 zero = {0}, int64[3] expanded = {2, 1, 1}",
        },
        "its shape is (2, 4, 4) for 0 past tokens, expected (4, 4)",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_another_mask_is_declined_with_the_entry_that_differs(case: str):
    replaced, reason = DECLINED[case]
    program = program_from_text(changed(TEXT, replaced))
    before = text_of(program)
    declined = reasons(run_pass(FoldMask(), program))
    assert list(declined.values()) == [reason]
    assert text_of(program) == before


def test_a_graph_without_a_mask():
    program = program_from_text("main (float[1] x) => (float[1] y) { [n] y = Neg (x) }")
    assert reasons(run_pass(FoldMask(), program)) == {
        "graph": "there is no attention_mask and position_ids input"
    }
    unused = changed(TEXT, {"Add (scores, mask)": "Add (scores, scale)"})
    assert reasons(run_pass(FoldMask(), program_from_text(unused))) == {
        "attention_mask": "no scores are added to a mask made of it"
    }


# -- the domain


@pytest.mark.parametrize(
    ("mask", "positions", "message"),
    [
        ([0, 1, 1, 1, 1, 1], [2, 3, 4, 5], "the attention mask is not a prefix of ones"),
        ([1, 1, 1, 0, 1, 1], [2, 3, 4, 5], "the attention mask is not a prefix of ones"),
        ([1, 1, 0, 0, 0, 0], [2, 3, 4, 5], "the attention mask is not a prefix of ones"),
        ([1, 1, 1, 1, 1, 0], [0, 1, 2, 3], "positions are not 2 .. 5"),
    ],
)
def test_inputs_outside_the_domain_are_refused(mask: list[int], positions: list[int], message: str):
    program = program_from_text(TEXT)
    inputs = {"attention_mask": np.array([mask]), "position_ids": np.array([positions])}
    with pytest.raises(PassError) as caught:
        FoldMask().adapt_inputs(inputs, program)
    assert caught.value.message == message


def test_options():
    assert FoldMask().promise() == Contract.exact()
    assert FoldMask.changes_signature
    assert (FoldMask.name, FoldMask.after, FoldMask().required()) == (
        "fold-mask",
        ("fold-constants",),
        (),
    )
