"""Joined products and the invariant of keep-qkv-bias: a bias lies where its weight's columns do."""

import pytest
from program_runs import run_pass
from program_text import changed, program_from_text
from traced_models import TracedModels

from compiler.contracts.weights import Weight, concat, cut, source, transpose, zeros
from passes.fuse_qkv import FuseQKV
from passes.keep_qkv_bias import KeepQKVBias

LAYER = "model.layers.0.self_attn"


JOINED = """
main (float[1, 4, 8] x, float[8, 16] "qkv.weight", float[16] "qkv.bias") => (float[1, 4, 16] y)
{
  [product] product = MatMul (x, "qkv.weight")
  [total] y = Add (product, "qkv.bias")
}
"""
PARTS = [f"{LAYER}.{part}_proj" for part in "qkv"]
WEIGHTS = [source(f"{name}.weight", (8 if ".q_" in name else 4, 8), "float32") for name in PARTS]
BIASES = [
    source(f"{name}.bias", (weight.shape[0],), "float32")
    for name, weight in zip(PARTS, WEIGHTS, strict=True)
]
Q, K, V = range(3)


def _joined_violations(weight: Weight, bias: Weight, text: str = JOINED) -> tuple[str, ...]:
    program = program_from_text(text)
    program.weights["qkv.weight"], program.weights["qkv.bias"] = weight, bias
    program.checkpoint_tensors = {f"{name}.bias": (4,) for name in PARTS}
    (invariant,) = KeepQKVBias().invariants(program)
    return invariant.violations(program)


def _joined(parts: list[Weight], order: tuple[int, ...] = (Q, K, V)) -> Weight:
    return concat([parts[index] for index in order])


def test_joined_projections_keep_their_biases():
    assert _joined_violations(transpose(_joined(WEIGHTS)), _joined(BIASES)) == ()
    swapped = (V, K, Q)
    assert _joined_violations(transpose(_joined(WEIGHTS, swapped)), _joined(BIASES, swapped)) == ()


def _said(part: str, added: str, made: str) -> str:
    return f"{LAYER}.{part}_proj.bias has {added} of total, its weight has {made} of product"


def _lost(part: str) -> str:
    return f"{LAYER}.{part}_proj.bias reaches 0 Adds in the prefill graph, expected one"


MISJOINED = {
    "k and v swapped": (
        _joined(BIASES, (Q, V, K)),
        (_said("k", "0:4 at 12", "0:4 at 8"), _said("v", "0:4 at 8", "0:4 at 12")),
    ),
    "v doubled": (
        _joined(BIASES, (Q, V, V)),
        (_lost("k"), _said("v", "0:4 at 8 and 0:4 at 12", "0:4 at 12")),
    ),
    "k dropped": (
        concat([BIASES[Q], zeros((4,), "float32"), BIASES[V]]),
        (_lost("k"),),
    ),
    "q turned round": (
        concat([cut(BIASES[Q], 0, 4, 8), cut(BIASES[Q], 0, 0, 4), BIASES[K], BIASES[V]]),
        (_said("q", "4:8 at 0 and 0:4 at 4", "0:8 at 0"),),
    ),
    "half of q dropped": (
        concat([cut(BIASES[Q], 0, 0, 4), zeros((4,), "float32"), BIASES[K], BIASES[V]]),
        (_said("q", "0:4 at 0", "0:8 at 0"),),
    ),
}


@pytest.mark.parametrize("case", MISJOINED)
def test_a_bias_must_lie_where_its_weight_does(case: str):
    bias, wanted = MISJOINED[case]
    assert _joined_violations(transpose(_joined(WEIGHTS)), bias) == wanted


def _rank(weights: list[Weight], rank: int) -> list[Weight]:
    """A rank's half of the outputs of each projection."""
    return [
        cut(one, 0, rank * one.shape[0] // 2, (rank + 1) * one.shape[0] // 2) for one in weights
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_has_the_same_rows_of_both(rank: int):
    text = changed(JOINED, {"[8, 16]": "[8, 8]", "float[16]": "float[8]", "4, 16]": "4, 8]"})
    weight = transpose(_joined(_rank(WEIGHTS, rank)))
    assert _joined_violations(weight, _joined(_rank(BIASES, rank)), text) == ()
    rows = [f"{rank * n}:{(rank + 1) * n} at {at}" for n, at in ((4, 0), (2, 4), (2, 6))]
    others = [f"{(1 - rank) * n}:{(2 - rank) * n} at {at}" for n, at in ((4, 0), (2, 4), (2, 6))]
    assert _joined_violations(weight, _joined(_rank(BIASES, 1 - rank)), text) == tuple(
        _said(part, other, own)
        for part, other, own in sorted(zip("qkv", others, rows, strict=True))
    )


def test_columns_of_the_input_may_be_split():
    text = changed(JOINED, {"[1, 4, 8]": "[1, 4, 4]", "[8, 16]": "[4, 16]"})
    weight = cut(transpose(_joined(WEIGHTS)), 0, 4, 8)
    assert _joined_violations(weight, _joined(BIASES), text) == ()


STORED = """
main (float[1, 4, 8] x, int8[16, 8] "qkv.weight", int8[16] "qkv.bias", float[16] scale)
  => (float[1, 4, 16] y)
< float small = {0.1} >
{
  [widened] wide = DequantizeLinear <axis: int = 0> ("qkv.weight", scale)
  [turned] w = Transpose <perm: ints = [1, 0]> (wide)
  [product] product = MatMul (x, w)
  [widened_bias] bias = DequantizeLinear ("qkv.bias", small)
  [total] y = Add (product, bias)
}
"""


def _quantized(weight: Weight) -> Weight:
    """An operator that this module does not know, and that keeps the shape."""
    return Weight("rounded", weight.shape, "int8", (weight,))


def test_it_holds_behind_dequantization():
    weight, bias = _quantized(_joined(WEIGHTS)), _quantized(_joined(BIASES))
    assert _joined_violations(weight, bias, STORED) == ()
    bias = _quantized(_joined(BIASES, (Q, V, K)))
    assert _joined_violations(weight, bias, STORED) == (
        _said("k", "0:4 at 12", "0:4 at 8"),
        _said("v", "0:4 at 8", "0:4 at 12"),
    )


def test_a_gemm_s_weight_may_lie_either_way():
    gemm = {
        "float[1, 4, 8]": "float[4, 8]",
        "float[1, 4, 16]": "float[4, 16]",
        "MatMul (": "Gemm (",
    }
    text = changed(JOINED, gemm)
    assert _joined_violations(transpose(_joined(WEIGHTS)), _joined(BIASES), text) == ()
    text = changed(text, {"Gemm (": "Gemm <transB: int = 1> (", "[8, 16]": "[16, 8]"})
    assert _joined_violations(_joined(WEIGHTS), _joined(BIASES), text) == ()
    # The other way round its inputs lie where its outputs should; q's are as many, and pass.
    assert _joined_violations(transpose(_joined(WEIGHTS)), _joined(BIASES), text) == (
        _said("k", "0:4 at 8", "0:8 at 0"),
        _said("v", "0:4 at 12", "0:8 at 0"),
    )


# -- fuse-qkv, in layer 17 of 24


FAULTY, LAYERS = "model.layers.17.self_attn", 24


def _exchanged(weight: Weight, replaced: dict[str, Weight]) -> Weight:
    assert weight.op == "concat"
    return concat([replaced.get(str(part.key), part) for part in weight.operands])


@pytest.mark.parametrize("fault", ["swapped", "dropped", "doubled"])
def test_a_fault_of_fuse_qkv_in_one_layer_is_named(traced_models: TracedModels, fault: str):
    program = traced_models.programs("own-head-dim", layers=LAYERS).programs["decode"]
    (invariant,) = KeepQKVBias().invariants(program)
    assert len(run_pass(FuseQKV(), program).rewrites) == LAYERS
    assert invariant.violations(program) == ()
    name = f"{FAULTY}.qkv_proj.bias"
    k, v = (source(f"{FAULTY}.{part}_proj.bias", (48,), "float32") for part in "kv")
    replaced = {
        "swapped": {k.key: v, v.key: k},
        "dropped": {v.key: zeros((48,), "float32")},
        "doubled": {v.key: k},
    }[fault]
    program.weights[name] = _exchanged(program.weights[name], replaced)
    total, product = f"{FAULTY}.qkv_proj/Add", f"{FAULTY}.qkv_proj/MatMul"
    made = {"k": "0:48 at 96", "v": "0:48 at 144"}
    misplaced = (
        f"{FAULTY}.{part}_proj.bias has {{}} of {total}, its weight has {made[part]} of {product}"
        for part in "kv"
    )
    on_k, on_v = misplaced
    lost = f"{FAULTY}.v_proj.bias reaches 0 Adds in the decode graph, expected one"
    assert (
        invariant.violations(program)
        == {
            "swapped": (on_k.format("0:48 at 144"), on_v.format("0:48 at 96")),
            "dropped": (lost,),
            "doubled": (on_k.format("0:48 at 96 and 0:48 at 144"), lost),
        }[fault]
    )
