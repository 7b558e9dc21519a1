"""Generated graphs are Qwen models: valid, deterministic, and what they are said to be."""

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import onnx
import pytest
from program_runs import run_pass
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.program import Phase, Program
from compiler.numerics.feeds import lengths_of
from compiler.numerics.reference_run import ReferenceSession, run_model
from compiler.pass_kit import text_of
from compiler.pass_kit.block_options import QKV, BlockOptions, draw_options, simpler_options
from compiler.pass_kit.blocks import block_program
from compiler.pass_kit.cases import Recipe
from passes.fold_constants import FoldConstants

PHASES: tuple[Phase, ...] = ("prefill", "decode")


def outputs_of(options: BlockOptions) -> dict[str, np.ndarray]:
    """What the block gives on the last of its lengths."""
    case = Recipe(options, (), frozenset()).case()
    assert case is not None
    feeds = {**case.parameters(case.program), **case.inputs(case.lengths[-1])}
    return ReferenceSession(case.program.model()).run(feeds)


def operators(program: Program) -> Counter[str]:
    return Counter(node.op for node in program.graph.nodes)


@pytest.mark.parametrize("seed", range(12))
def test_a_drawn_block_is_valid_and_runs(seed: int):
    options = draw_options(seed, phases=PHASES)
    model = block_program(options).model()
    onnx.checker.check_model(model, full_check=True)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    outputs = outputs_of(options)
    assert outputs["logits"].shape == (1, options.window, options.vocabulary)
    assert all(np.isfinite(value).all() for value in outputs.values())
    assert all(value.std() > 1e-3 for value in outputs.values())


def test_equal_seeds_give_equal_blocks():
    one, other = (draw_options(3, phases=PHASES) for _ in range(2))
    assert one == other
    assert text_of(block_program(one)) == text_of(block_program(other))
    assert draw_options(4, phases=PHASES) != one
    assert {draw_options(seed, phases=("decode",)).phase for seed in range(9)} == {"decode"}


def test_every_choice_is_drawn():
    drawn = [draw_options(seed, phases=PHASES) for seed in range(200)]
    assert {one.phase for one in drawn} == {"prefill", "decode"}
    assert {one.layers for one in drawn} == {1, 2, 3}
    assert {one.group for one in drawn} == {1, 2, 3, 4}
    assert {one.heads for one in drawn} >= {1, 3, 9, 12}
    assert {one.dtype for one in drawn} == {"float32", "float16", "bfloat16"}
    assert {QKV, ()} < {one.biases for one in drawn}
    switches = [f.name for f in fields(BlockOptions) if isinstance(f.default, bool)]
    assert len(switches) == 12
    for name in ("quantized", *switches):
        assert {bool(getattr(one, name)) for one in drawn} == {False, True}, name
    assert {(one.squares, one.inverse) for one in drawn} == {
        (squares, inverse) for squares in ("Pow", "Mul") for inverse in ("Reciprocal", "Div")
    }


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"squares": "Mul"}, {"Mul": 3, "Pow": -3}),
        ({"inverse": "Div"}, {"Div": 3, "Reciprocal": -3}),
        ({"biases": ()}, {"Add": -3}),
        ({"biases": ("o", "down")}, {"Add": -1}),
        ({"quantized": ("q", "up")}, {"DequantizeLinear": 2}),
        ({"is_swapped": True}, {}),
        ({"is_tied": True}, {}),
        ({"dtype": "float16"}, {}),
        ({"has_identities": True, "seed": 1}, {"Identity": 10}),
        ({"repeats_keys": True}, {"Expand": 2, "Reshape": 0, "Unsqueeze": 0}),
        ({"scales_operands": True}, {"Mul": 1}),
        ({"has_nan_guard": True}, {"IsNaN": 1, "Where": 1}),
        ({"has_own_masks": True, "layers": 1}, {}),
        ({"repeats_tables": True}, {"Concat": 1}),
        ({"asks_lengths": True}, {"Shape": 3, "Concat": 3}),
    ],
    ids=str,
)
def test_an_option_changes_what_it_says(change: dict[str, object], more: dict[str, int]):
    plain, other = BlockOptions(), replace(BlockOptions(), **change)
    wanted = operators(block_program(plain))
    wanted.update(more)
    assert operators(block_program(other)) == +wanted
    assert text_of(block_program(plain)) != text_of(block_program(other))


@pytest.mark.parametrize(
    "change",
    [
        {"is_swapped": True},
        {"has_identities": True},
        {"has_computed_shapes": True},
        {"squares": "Mul"},
        {"inverse": "Div"},
        {"repeats_keys": True},
        {"repeats_keys": True, "group": 1},
        {"repeats_keys": True, "turns_by_reshape": True},
        {"scales_operands": True},
        {"has_nan_guard": True},
        {"has_own_masks": True},
        {"repeats_tables": True},
        {"asks_lengths": True},
    ],
    ids=str,
)
def test_a_spelling_does_not_change_the_numbers(change: dict[str, object]):
    other = replace(BlockOptions(layers=2, seed=2), **change)
    wanted = outputs_of(BlockOptions(layers=2, seed=2, group=other.group))
    for name, value in outputs_of(other).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-6)


def test_it_computes_what_the_traced_model_computes(traced_models: TracedModels):
    traced = traced_models.programs("gqa").programs["prefill"]
    options = BlockOptions(
        tokens=WINDOW,
        context=CONTEXT,
        layers=2,
        kv_heads=1,
        group=7,
        head_dim=8,
        hidden=56,
        intermediate=40,
        vocabulary=VOCABULARY,
    )
    case = Recipe(options, (), frozenset()).case()
    assert case is not None
    assert case.program.inputs() == traced.inputs()
    assert case.program.outputs() == traced.outputs()
    for lengths in lengths_of(traced):
        feeds = {**case.parameters(case.program), **case.inputs(lengths)}
        wanted = run_model(traced.model(), feeds)
        for name, value in run_model(case.program.model(), feeds).items():
            np.testing.assert_array_equal(value, wanted[name])
    run_pass(FoldConstants(), traced)
    run_pass(FoldConstants(), case.program)
    layer = "model.layers.1"
    assert operators_of_layer(case.program, layer) == operators_of_layer(traced, layer)


def operators_of_layer(program: Program, layer: str) -> Counter[str]:
    return Counter(
        f"{node.name.rpartition('/')[0]} {node.op}"
        for node in program.graph.nodes
        if node.name.startswith(layer)
    )


def test_simpler_options_differ_in_one_step_and_end():
    options, steps = draw_options(11, phases=PHASES), 0
    while True:
        simpler = list(simpler_options(options))
        assert options not in simpler
        if not simpler:
            break
        options, steps = simpler[-1], steps + 1
        assert steps < 40
    assert options == BlockOptions(phase=options.phase, seed=options.seed, biases=())
