"""Any set of a graph's nodes is a graph of its own that can be run."""

import numpy as np
import onnx
import pytest

from compiler.contracts.pass_base import Pass
from compiler.numerics.reference_run import ReferenceSession
from compiler.pass_kit import Case
from compiler.pass_kit.block_options import BlockOptions
from compiler.pass_kit.cases import Recipe
from compiler.pass_kit.subgraphs import observe, part_of, with_plain_weights
from passes.cast_dtype import CastDtype
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

FUSED = (FoldMask(), PlanKVCache(), FuseAttention())


def block(*earlier: Pass) -> Case:
    case = Recipe(BlockOptions(), earlier, frozenset()).case()
    assert case is not None
    return case


def run(case: Case) -> dict[str, np.ndarray]:
    feeds = {**case.parameters(case.program), **case.inputs(case.lengths[0])}
    return ReferenceSession(case.program.model()).run(feeds)


@pytest.mark.parametrize(
    "earlier",
    [(), FUSED, (CastDtype("bfloat16"),), (CastDtype("float16"),), (StoreWeights("bfloat16"),)],
    ids=str,
)
def test_every_node_alone_is_a_graph_that_runs(earlier: tuple[Pass, ...]):
    case = block(*earlier)
    observed = observe(case, case.lengths[0])
    assert len(observed.names()) > 60
    for name in observed.names():
        part = part_of(observed, {name})
        assert part is not None
        onnx.checker.check_model(part.program.model(), full_check=True)
        assert run(part)
        assert [node.name for node in part.program.graph.nodes] == [name]


def test_all_nodes_are_the_whole():
    case = block(*FUSED)
    observed = observe(case, case.lengths[0])
    part = part_of(observed, set(observed.names()))
    assert part is not None
    assert part.program.inputs() == case.program.inputs()
    assert part.program.aliases == case.program.aliases
    assert part.program.functions.keys() == {"CacheUpdate", "CausalMask", "FusedAttention"}
    for name, value in run(case).items():
        assert run(part)[name].tobytes() == value.tobytes()


def test_what_a_node_outside_made_becomes_an_input_or_a_constant():
    case = block()
    observed = observe(case, case.lengths[0])
    part = part_of(observed, {"model/Where", "model.layers.0.self_attn/Add_2"})
    assert part is not None
    assert [spec.name for spec in part.program.inputs()] == ["model.layers.0.self_attn/Mul_4"]
    (allowed,) = [t for t in part.program.model().graph.initializer if t.name == "model/And"]
    wanted = observed.values["model/And"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(allowed), wanted)
    assert part.program.weights == part.tensors == {}
    kept = part_of(observed, {"model/Where"}, inputs={"input_ids"})
    assert kept is not None
    assert [spec.name for spec in kept.program.inputs()] == ["input_ids"]


def test_plain_weights_are_tensors_of_their_own():
    case = block()
    plain = with_plain_weights(case)
    assert all(weight.key == name for name, weight in plain.program.weights.items())
    assert plain.program.checkpoint_tensors.keys() == plain.tensors.keys()
    wanted, found = run(case), run(plain)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in wanted.items()
    }
