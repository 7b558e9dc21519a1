"""Programs in Relax: inlined or taken whole, the numbers are onnxruntime's."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import tvm
from program_runs import run_program
from program_text import program_from_text
from relax_runs import arguments, run_main
from rewritten_model import LAYERS, NAME, rewritten
from traced_models import TracedModels
from tvm import relax

from compiler.contracts.errors import TargetError
from compiler.contracts.program import Phase
from compiler.relax import AttributeValue, relax_from_program
from passes.fold_mask import CAUSAL_MASK
from passes.fuse_attention import FUSED_ATTENTION
from passes.fuse_rms_norm import FUSED_RMS_NORM
from passes.fuse_silu_mul import FUSED_SILU_MUL
from passes.plan_kv_cache import CACHE_UPDATE

SMALL = """
main (float[1, 4] x, float[4, 2] "lm_head.weight", float[2] "lm_head.bias") => (float[1, 2] y)
{
  ["lm_head/MatMul"] product = MatMul (x, "lm_head.weight")
  ["lm_head/Add"] y = Add (product, "lm_head.bias")
}
"""


def refuse(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    attributes: Mapping[str, AttributeValue],
) -> relax.Expr:
    del builder, inputs, attributes
    raise TargetError("not this one", where="here")


@pytest.mark.parametrize(("phase", "past", "valid"), [("prefill", 3, 9), ("decode", 6, 1)])
def test_inlined_functions_equal_onnxruntime(
    traced_models: TracedModels, phase: Phase, past: int, valid: int
):
    program, inputs = rewritten(traced_models, phase, past=past, valid=valid)
    assert set(program.functions) == {
        one.name
        for one in (CAUSAL_MASK, CACHE_UPDATE, FUSED_ATTENTION, FUSED_RMS_NORM, FUSED_SILU_MUL)
    }
    checkpoint = traced_models.checkpoint(NAME, layers=LAYERS)
    wanted = run_program(program, inputs, checkpoint)
    module = relax_from_program(program)
    executable = tvm.compile(module, target=tvm.target.Target("llvm"))
    found = run_main(executable, arguments(program, inputs, checkpoint))
    assert [array.shape for array in found] == [
        wanted[spec.name].shape for spec in program.outputs()
    ]
    for array, spec in zip(found, program.outputs(), strict=True):
        np.testing.assert_allclose(
            array, wanted[spec.name], rtol=1e-4, atol=1e-5, err_msg=spec.name
        )


def test_main_takes_activations_then_parameters():
    program = program_from_text(SMALL)
    module = relax_from_program(program)
    assert [parameter.name for parameter in module["main"].params] == [
        "x",
        "lm_head.weight",
        "lm_head.bias",
    ]


def test_a_converter_takes_a_fused_operator_whole(traced_models: TracedModels):
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)
    taken: list[Mapping[str, AttributeValue]] = []

    def convert(
        builder: relax.BlockBuilder,
        inputs: Sequence[relax.Expr],
        attributes: Mapping[str, AttributeValue],
    ) -> relax.Expr:
        del builder
        assert len(inputs) == 5
        taken.append(dict(attributes))
        return relax.op.tanh(relax.op.reshape(inputs[0], [1, 1, 56]))

    module = relax_from_program(program, fused={"FusedAttention": convert})
    assert len(taken) == 1
    assert set(taken[0]) == {
        *("scale", "blocked", "window", "tokens", "context", "grouped", "by_head", "merged")
    }
    assert taken[0]["scale"] == pytest.approx(8**-0.5)
    assert taken[0]["grouped"] == (1, 1, 7, 1, 8)
    text = module.script()
    assert "nn.softmax" not in text
    assert "R.tanh" in text


def test_the_importer_is_left_as_it_was(traced_models: TracedModels):
    from tvm.relax.frontend.onnx import onnx_frontend

    before = onnx_frontend._get_convert_map
    program, _ = rewritten(traced_models, "decode", past=0, valid=1)

    with pytest.raises(TargetError, match="not this one"):
        relax_from_program(program, fused={"FusedAttention": refuse})
    assert onnx_frontend._get_convert_map is before
    assert "FusedAttention" not in onnx_frontend._get_convert_map()


def test_threads_do_not_see_each_other_s_converters():
    from tvm.relax.frontend.onnx import onnx_frontend

    before = onnx_frontend._get_convert_map
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                relax_from_program(program_from_text(SMALL), fused={"Nobody": refuse})
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert onnx_frontend._get_convert_map is before


def test_an_unknown_operator_names_its_node():
    program = program_from_text(
        'main (float[1, 4] x) => (float[1, 4] y) { ["vision/Strange"] y = com.else.Strange (x) }'
    )
    with pytest.raises(TargetError) as caught:
        relax_from_program(program)
    assert caught.value.message == "TVM's ONNX importer has no operator 'Strange'"
    assert caught.value.where == "vision/Strange"
    assert caught.value.hint == "write a pass that rewrites it, or a target that converts it"


def test_no_fused_operator_is_one_of_the_importer_s():
    from tvm.relax.frontend.onnx import onnx_frontend

    functions = (CAUSAL_MASK, CACHE_UPDATE, FUSED_ATTENTION, FUSED_RMS_NORM, FUSED_SILU_MUL)
    assert not {one.name for one in functions} & set(onnx_frontend._get_convert_map())
