"""Values follow from names and seeds, and no two tensors have the same ones."""

from dataclasses import replace

import numpy as np

from compiler.contracts.program import Program
from compiler.contracts.weights import concat, source
from compiler.numerics.feeds import Lengths
from compiler.pass_kit import Case, case_of, program_from_text, text_of
from compiler.pass_kit.block_options import PROJECTIONS, BlockOptions
from compiler.pass_kit.blocks import block_program

TEXT = """
main (float[1, 4, 4] x, float[4, 4] "a.weight", float[4, 4] "b.weight") => (float[1, 4, 4] y)
{
  ["a/MatMul"] product = MatMul (x, "a.weight")
  ["b/MatMul"] y = MatMul (product, "b.weight")
}
"""


def quantized(seed: int) -> Case:
    options = BlockOptions(kv_heads=2, group=1, quantized=PROJECTIONS, biases=PROJECTIONS)
    return case_of(block_program(options), vocabulary=16, seed=seed)


def test_each_tensor_has_values_of_its_own():
    case = quantized(1)
    values = case.parameters(case.program)
    assert values["model.layers.0.self_attn.q_proj.weight"].dtype == np.int8
    assert len({value.tobytes() for value in values.values()}) == len(values)
    assert all(value.std() > 0 for value in values.values())
    scale = values["model.layers.0.self_attn.q_proj.weight_scale"]
    assert 0 < scale.min() <= scale.max() < 0.02


def test_values_follow_from_the_seed():
    one, same, other = (quantized(seed) for seed in (1, 1, 2))
    for name, value in one.parameters(one.program).items():
        assert value.tobytes() == same.parameters(same.program)[name].tobytes()
        assert value.tobytes() != other.parameters(other.program)[name].tobytes()


def test_inputs_cannot_be_written():
    case = case_of(program_from_text(TEXT))
    assert not case.inputs(Lengths(0, 4))["x"].flags.writeable


def test_a_copy_is_the_same_program():
    case = quantized(1)
    copied: Program = case.copy()
    assert text_of(copied) == text_of(case.program)
    assert copied.model().SerializeToString() == case.program.model().SerializeToString()
    copied.graph.nodes[0].name = "another"
    assert text_of(copied) != text_of(case.program)


def test_a_joined_weight_takes_the_values_of_its_parts():
    case = case_of(program_from_text(TEXT))
    parts = [source(f"{name}.weight", (4, 4), "float32") for name in "ab"]
    joined = replace(case.program, weights={"joined.weight": concat(parts)})
    values = case.parameters(case.program)
    whole = case.parameters(joined)["joined.weight"]
    np.testing.assert_array_equal(whole, np.concatenate([values["a.weight"], values["b.weight"]]))
