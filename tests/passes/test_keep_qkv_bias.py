"""A bias that a later pass loses, doubles or moves is named, in each phase."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from program_runs import run_pass
from program_text import Golden, changed, linears_from_text, program_from_text, text_of
from traced_models import TracedModels

from compiler.contracts.pass_base import Contract, PassReport
from compiler.contracts.program import Program
from passes.eliminate_dead import EliminateDead
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_qkv import FuseQKV
from passes.keep_qkv_bias import KeepQKVBias
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

LAYER = "model.layers.0.self_attn"


def _text() -> str:
    inputs, outputs, nodes, stream = ["float[1, 4, 8] x"], [], [], "x"
    for layer in range(2):
        module = f"model.layers.{layer}.self_attn"
        for part, width in (("q", 8), ("k", 4), ("v", 4)):
            name = f"{module}.{part}_proj"
            inputs += [f'float[8, {width}] "{name}.weight"', f'float[{width}] "{name}.bias"']
            nodes += [
                f'["{name}/MatMul"] "{name}/MatMul" = MatMul ({stream}, "{name}.weight")',
                f'["{name}/Add"] "{name}/Add" = Add ("{name}/MatMul", "{name}.bias")',
                f'["{name}/Relu"] "{name}/Relu" = Relu ("{name}/Add")',
            ]
            if part != "q":
                nodes[-1] = nodes[-1].replace(f'"{name}/Relu" =', f'"present.{layer}.{part}" =')
                outputs.append(f'float[1, 4, {width}] "present.{layer}.{part}"')
        stream = f'"{module}.q_proj/Relu"'
    nodes.append(f'["lm_head/Relu"] logits = Relu ({stream})')
    outputs.insert(0, "float[1, 4, 8] logits")
    body = "\n  ".join(nodes)
    return f"main ({', '.join(inputs)}) => ({', '.join(outputs)})\n{{\n  {body}\n}}"


@pytest.fixture
def program() -> Program:
    return linears_from_text(_text())


def _node(program: Program, name: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def _tensor(program: Program, name: str) -> gs.Tensor:
    return program.graph.tensors()[name]


def _violations(broken: Callable[[Program], None]) -> tuple[str, ...]:
    program = linears_from_text(_text())
    (invariant,) = KeepQKVBias().invariants(program)
    assert invariant.name == "keep-qkv-bias"
    assert invariant.violations(program) == ()
    broken(program)
    return invariant.violations(program)


# -- what breaks it


def _drop_in_one_layer(program: Program) -> None:
    reader = _node(program, "model.layers.1.self_attn.k_proj/Relu")
    reader.inputs[0] = _tensor(program, "model.layers.1.self_attn.k_proj/MatMul")
    program.graph.cleanup()
    program.prune_parameters()


def _add_twice(program: Program) -> None:
    total = _tensor(program, f"{LAYER}.q_proj/Add")
    again = gs.Variable("again")
    program.graph.nodes.append(
        gs.Node(
            "Add",
            "again",
            inputs=[total, _tensor(program, f"{LAYER}.q_proj.bias")],
            outputs=[again],
        )
    )
    _node(program, f"{LAYER}.q_proj/Relu").inputs[0] = again


def _add_k_to_v(program: Program) -> None:
    _node(program, f"{LAYER}.v_proj/Add").inputs[1] = _tensor(program, f"{LAYER}.k_proj.bias")


def _swap_k_and_v(program: Program) -> None:
    for one, other in (("k", "v"), ("v", "k")):
        total = _node(program, f"{LAYER}.{one}_proj/Add")
        total.inputs[1] = next(
            tensor for tensor in program.graph.inputs if tensor.name == f"{LAYER}.{other}_proj.bias"
        )


def _bypass(program: Program) -> None:
    """The Add stays where it is, dead."""
    reader = _node(program, f"{LAYER}.v_proj/Relu")
    reader.inputs[0] = _tensor(program, f"{LAYER}.v_proj/MatMul")


def _bypass_beside_a_live_sum(program: Program) -> None:
    product = _tensor(program, f"{LAYER}.q_proj/MatMul")
    around = gs.Variable("around")
    program.graph.nodes.append(gs.Node("Neg", "around", inputs=[product], outputs=[around]))
    _node(program, "lm_head/Relu").inputs[0] = around
    program.graph.outputs.append(_tensor(program, f"{LAYER}.q_proj/Add"))


def _subtract(program: Program) -> None:
    _node(program, f"{LAYER}.k_proj/Add").op = "Sub"


def _sum_before_the_product(program: Program) -> None:
    """(x + b) W is not x W + b."""
    product, total = (_node(program, f"{LAYER}.q_proj/{op}") for op in ("MatMul", "Add"))
    x, after = product.inputs[0], total.outputs[0]
    total.inputs[0], product.inputs[0] = x, gs.Variable("early")
    total.outputs[0] = product.inputs[0]
    product.outputs[0] = after


def _scale(program: Program) -> None:
    total = _node(program, f"{LAYER}.v_proj/Add")
    scaled = gs.Variable("scaled")
    factor = gs.Constant("factor", np.array(2, np.float32))
    bias = _tensor(program, f"{LAYER}.v_proj.bias")
    program.graph.nodes.append(gs.Node("Mul", "scaled", inputs=[bias, factor], outputs=[scaled]))
    total.inputs[1] = scaled


BROKEN = {
    "bias dropped in one layer": _drop_in_one_layer,
    "bias added twice": _add_twice,
    "k's bias on v": _add_k_to_v,
    "k's and v's biases swapped": _swap_k_and_v,
    "the Add bypassed": _bypass,
    "the Add bypassed, and live": _bypass_beside_a_live_sum,
    "bias subtracted": _subtract,
    "bias added before the product": _sum_before_the_product,
    "bias scaled": _scale,
}


def test_every_way_to_break_it_names_the_bias(golden: Golden):
    lines = []
    for case, broken in BROKEN.items():
        violations = _violations(broken)
        assert violations, case
        assert all(".bias" in sentence for sentence in violations), case
        lines += [case, *(f"  {sentence}" for sentence in violations)]
    golden("keep-qkv-bias.txt", "\n".join(lines) + "\n")


# -- what does not break it


def test_layout_operators_may_stand_between():
    text = changed(
        _text(),
        {
            f'Add ("{LAYER}.k_proj/MatMul", "{LAYER}.k_proj.bias")': "Add (bias, product)",
            f'["{LAYER}.k_proj/Add"]': (
                f'[cast] bias = Identity ("{LAYER}.k_proj.bias")\n'
                f'[same] product = Identity ("{LAYER}.k_proj/MatMul")\n'
                f'["{LAYER}.k_proj/Add"]'
            ),
        },
    )
    program = linears_from_text(text)
    assert KeepQKVBias().invariants(program)[0].violations(program) == ()


def test_it_holds_through_the_whole_pipeline(traced_models: TracedModels):
    for program in traced_models.programs("gqa"):
        (invariant,) = KeepQKVBias().invariants(program)
        for rewriting in (
            FoldConstants(),
            FoldMask(),
            PlanKVCache(),
            FuseQKV(),
            FuseAttention(),
            EliminateDead(),
            StoreWeights(dtype="bfloat16"),
        ):
            run_pass(rewriting, program)
            assert invariant.violations(program) == (), rewriting.name


def test_every_bias_of_the_checkpoint_is_watched(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["decode"]
    program.graph = program_from_text("main (float[1] x) => (float[1] y) { [n] y = Neg (x) }").graph
    program.weights = {}
    (invariant,) = KeepQKVBias().invariants(program)
    assert invariant.violations(program) == tuple(
        f"model.layers.{layer}.self_attn.{part}_proj.bias reaches 0 Adds in the decode graph, "
        "expected one"
        for layer in range(2)
        for part in "kqv"
    )


def test_a_checkpoint_without_biases_has_nothing_to_keep(traced_models: TracedModels):
    program = traced_models.programs("llama").programs["decode"]
    (invariant,) = KeepQKVBias().invariants(program)
    assert invariant.violations(program) == ()


def test_it_rewrites_nothing(program: Program):
    before = text_of(program)
    assert run_pass(KeepQKVBias(), program) == PassReport()
    assert text_of(program) == before
    assert KeepQKVBias().promise() == Contract.exact()
    assert (KeepQKVBias.name, KeepQKVBias.phases) == ("keep-qkv-bias", ("prefill", "decode"))
