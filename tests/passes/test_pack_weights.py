"""Linears' weights in the tiles of a matrix unit, and what reads them through UnpackedWeight."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from program_runs import random_parameters, reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, linears_from_text, text_of
from relax_runs import arguments, run_main
from staged_models import POINTS, staged
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import CompilerError, TargetError
from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.contracts.weight_values import value
from compiler.contracts.weights import unpacked
from compiler.numerics.float_twin import float_twin
from compiler.numerics.quantized_weights import widened
from compiler.relax import import_tvm, relax_from_program
from compiler.stages.calibrate import with_calibrated
from compiler.stages.shard import shard
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.cast_dtype import CastDtype
from passes.keep_qkv_bias import KeepQKVBias
from passes.pack_weights import UNPACKED_WEIGHT, PackWeights
from passes.shard_tensor_parallel import ShardTensorParallel
from passes.store_weights import StorageDtype, StoreWeights

GOLDEN = Path(__file__).parent / "golden"
FLOATS = (GOLDEN / "store-weights.before.txt").read_text(encoding="utf-8")
INT8 = (GOLDEN / "annotate-int8-qdq.before.txt").read_text(encoding="utf-8")
# The small graph has two of the seven; its head is stored in bfloat16.
CHOSEN = ("*.q_proj", "*.down_proj")
IDS = {"input_ids": np.array([[3, 0, 8, 3]])}
# The embedding is the down projection, too.
TIED = changed(
    FLOATS,
    {
        'float[6] "norm.weight", float[6, 8] "up.weight"': 'float[6] "norm.weight", '
        'float[6, 9] "up.weight"',
        'float[8] "up.bias", float[8, 6] "down.weight"': 'float[9] "up.bias", '
        'float[9, 6] "down.weight"',
    },
)


def stored(text: str = FLOATS, dtype: StorageDtype = "bfloat16") -> Program:
    program = linears_from_text(text)
    run_pass(StoreWeights(dtype=dtype), program)
    return program


def quantized(group: int = 0) -> Program:
    program = linears_from_text(INT8)
    run_pass(AnnotateInt8QDQ(include=CHOSEN, group_size=group), program)
    run_pass(StoreWeights(dtype="bfloat16"), program)
    return program


def tied() -> Program:
    """A head and an embedding as one expression, like those that a trace leaves."""
    program = linears_from_text(TIED)
    program.weights["up.weight"] = linears_from_text(TIED).weights["up.weight"]
    run_pass(StoreWeights(dtype="bfloat16"), program)
    program.weights["up.weight"] = program.weights["embed.weight"]
    return program


def outputs_of(program: Program) -> dict[str, np.ndarray]:
    return run_program(program, {**IDS, **random_parameters(program)})


# -- what is rewritten


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_golden(golden: Golden, dtype: str):
    program = stored() if dtype == "bfloat16" else quantized()
    before = outputs_of(program)
    report = run_pass(PackWeights(), program)
    golden(f"pack-weights.{dtype}.txt", text_of(program))
    assert len(report.rewrites) == (2 if dtype == "bfloat16" else 3)
    assert report.skips == ()
    assert set(program.functions) == {UNPACKED_WEIGHT.name}
    for name, array in outputs_of(program).items():
        assert array.tobytes() == before[name].tobytes(), name


def test_a_tied_table_is_packed_with_its_linear():
    program = tied()
    before = outputs_of(program)
    report = run_pass(PackWeights(), program)
    assert set(report.rewrites) == {f"{m}/UnpackedWeight" for m in ("embed", "up", "down")}
    keys = {program.weights[name].key for name in ("embed.weight", "up.weight")}
    assert keys == {"pack(cast(embed.weight, bfloat16))"}
    lookup = next(node for node in program.graph.nodes if node.op == "Gather")
    assert lookup.inputs[0].inputs[0].op == "UnpackedWeight"
    assert outputs_of(program)["y"].tobytes() == before["y"].tobytes()


def test_one_parameter_that_is_table_and_linear_has_one_node():
    program = tied()
    table, weight = (
        next(t for t in program.graph.inputs if t.name == name)
        for name in ("embed.weight", "up.weight")
    )
    (cast,) = weight.outputs
    cast.inputs = [table]
    program.prune_parameters()
    before = outputs_of(program)
    report = run_pass(PackWeights(), program)
    assert set(report.rewrites) == {"up/UnpackedWeight", "down/UnpackedWeight"}
    assert len(table.outputs) == 1
    assert outputs_of(program)["y"].tobytes() == before["y"].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_second_run_rewrites_nothing(dtype: str):
    program = stored() if dtype == "bfloat16" else quantized()
    run_pass(PackWeights(), program)
    once = text_of(program)
    report = run_pass(PackWeights(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_packed_tensors_are_counted_with_their_padding():
    program = stored()
    run_pass(PackWeights(), program)
    tile = 32 * 32 * 2
    vectors = (6 + 8) * 4 + 9 * 6 * 2
    assert ProgramSet({"prefill": program}).stored_bytes() == 2 * tile + vectors


# -- what is declined


def test_other_dtypes():
    for dtype in ("float32", "float16"):
        program = stored(dtype=dtype)
        before = text_of(program)
        said = f"it is {dtype}, expected bfloat16 or int8"
        assert reasons(run_pass(PackWeights(), program)) == {
            "up.weight": said,
            "down.weight": said,
        }
        assert text_of(program) == before


def test_groups_of_inputs():
    report = run_pass(PackWeights(), quantized(group=2))
    assert report.rewrites == ("lm_head/UnpackedWeight",)
    path = "model.layers.0.mlp.down_proj"
    assert {skip.node: skip.reason for skip in report.skips}[f"{path}.weight"] == (
        f"{path}/DequantizeLinear/codes reads it in groups of inputs, expected a scale for each "
        "output"
    )
    assert len(report.skips) == 2


def test_the_accelerator_s_product():
    program = linears_from_text(INT8)
    run_pass(AnnotateInt8QDQ(include=CHOSEN, operator="vastai"), program)
    found = reasons(run_pass(PackWeights(), program))
    name = "model.layers.0.mlp.down_proj"
    assert found[f"{name}.weight"] == (
        f"{name}/MatMul (QuantizedLinearPerChannel) reads it, expected DequantizeLinear by output"
    )


def test_weights_that_are_not_stored_as_the_checkpoint_s():
    program = linears_from_text(FLOATS)
    run_pass(CastDtype(dtype="bfloat16"), program)
    found = reasons(run_pass(PackWeights(), program))
    assert found["up.weight"] == "up/MatMul (MatMul) reads it, expected Cast to float32"


def test_arithmetic_in_16_bits():
    program = linears_from_text(FLOATS)
    run_pass(CastDtype(dtype="bfloat16"), program)
    run_pass(StoreWeights(dtype="bfloat16"), program)
    found = reasons(run_pass(PackWeights(), program))
    assert found["up.weight"] == "up/Transpose (Transpose) reads it, expected Cast to float32"


@pytest.mark.parametrize(
    ("axis", "scales", "zero_point"), [(1, [8], False), (0, [1], False), (0, [8], True)]
)
def test_scales_that_are_not_one_for_each_output(axis: int, scales: list[int], zero_point: bool):
    program = quantized()
    path = "model.layers.0.self_attn.q_proj"
    node = reader(program, f"{path}/DequantizeLinear")
    node.attrs["axis"] = axis
    node.inputs[1].shape = scales
    if zero_point:
        node.inputs.append(gs.Constant("zero", np.zeros(8, np.int8)))
    report = PackWeights().run(program)
    assert {skip.node: skip.reason for skip in report.skips} == {
        f"{path}.weight": f"{path}/DequantizeLinear (DequantizeLinear) reads it, "
        "expected DequantizeLinear by output"
    }


def reader(program: Program, name: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.name == name)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("up/Cast", "up/Cast is not read by one Transpose"),
        ("up/Transpose", "up/Transpose is not the weight of one MatMul"),
    ],
)
def test_what_something_else_reads_as_well(node: str, reason: str):
    program = stored()
    extra = gs.Variable("z", np.dtype(np.float32), ["a", "b"])
    made = reader(program, node).outputs[0]
    program.graph.nodes.append(gs.Node("Neg", "other/Neg", inputs=[made], outputs=[extra]))
    program.graph.outputs.append(extra)
    report = run_pass(PackWeights(), program)
    assert {skip.node: skip.reason for skip in report.skips} == {"up.weight": reason}
    assert report.rewrites == ("down/UnpackedWeight",)


def test_a_table_by_itself_is_no_candidate():
    program = stored()
    run_pass(PackWeights(), program)
    assert program.weights["embed.weight"].op == "cast"


def test_what_is_stored_once_with_a_declined_one():
    program = tied()
    turned = reader(program, "up/Transpose")
    extra = gs.Variable("z", np.dtype(np.float32), ["a", "b"])
    other = gs.Node("Neg", "other/Neg", inputs=[turned.outputs[0]], outputs=[extra])
    program.graph.nodes.append(other)
    program.graph.outputs.append(extra)
    report = run_pass(PackWeights(), program)
    assert {skip.node: skip.reason for skip in report.skips} == {
        "up.weight": "up/Transpose is not the weight of one MatMul",
        "embed.weight": "it is stored once with up.weight, which is declined",
    }
    assert report.rewrites == ("down/UnpackedWeight",)
    assert program.weights["embed.weight"].key == program.weights["up.weight"].key


# -- whole models


@pytest.mark.parametrize(("phase", "past", "valid"), [("prefill", 3, 9), ("decode", 5, 1)])
@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize("is_int8", [False, True])
def test_traced_models(
    traced_models: TracedModels, name: str, phase: Phase, past: int, valid: int, is_int8: bool
):
    """`mha` is tied. The biases are still where `keep-qkv-bias` wants them."""
    program = traced_models.programs(name).programs[phase]
    checkpoint = traced_models.checkpoint(name)
    (kept,) = KeepQKVBias().invariants(program)
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    if is_int8:
        run_pass(AnnotateInt8QDQ(("*_proj", "lm_head")), program)
    run_pass(StoreWeights(dtype="bfloat16"), program)
    wanted = run_program(program, inputs, checkpoint)
    signature = program.inputs(), program.outputs()
    report = run_pass(PackWeights(), program)
    assert report.skips == ()
    assert len(report.rewrites) == 2 * 7 + (2 if name == "mha" else 1)
    assert (program.inputs(), program.outputs()) == signature
    assert kept.violations(program) == ()
    for output, array in run_program(program, inputs, checkpoint).items():
        assert array.tobytes() == wanted[output].tobytes(), output


def test_a_tied_head_is_stored_once(traced_models: TracedModels):
    programs = traced_models.programs("mha")
    for program in programs:
        run_pass(StoreWeights(dtype="bfloat16"), program)
    before = set(programs.stored_weights())
    for program in programs:
        run_pass(PackWeights(), program)
    packed = {key for key in programs.stored_weights() if key.startswith("pack(")}
    assert len(programs.stored_weights()) == len(before)
    assert "pack(cast(model.embed_tokens.weight, bfloat16))" in packed
    assert len(packed) == 2 * 7 + 1


@pytest.mark.parametrize("point", ["packed bfloat16", "packed int8"])
def test_tvm_s_own_operators_unpack_alike(traced_models: TracedModels, point: str):
    """What no converter takes is inlined; the numbers are those of the graph before."""
    tvm = import_tvm()
    model = staged(traced_models, "mha", POINTS[point], layers=1)
    program = model.programs.programs["decode"]
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, model.checkpoint)
    module = relax_from_program(program)
    executable = tvm.compile(module, target=tvm.target.Target("llvm"))
    found = run_main(executable, arguments(program, inputs, model.checkpoint))
    for array, spec in zip(found, program.outputs(), strict=True):
        np.testing.assert_allclose(
            array.astype(np.float32), wanted[spec.name], rtol=0, atol=1e-2, err_msg=spec.name
        )


def test_a_converter_takes_it_whole():
    program = stored()
    run_pass(PackWeights(), program)
    seen: list[object] = []

    def refuse(builder: object, inputs: object, attributes: object) -> None:
        del builder, inputs
        seen.append(attributes)
        raise TargetError("not this one")

    with pytest.raises(TargetError, match="not this one"):
        relax_from_program(program, fused={UNPACKED_WEIGHT.name: refuse})  # pyright: ignore[reportArgumentType]
    assert seen == [{"outputs": 8, "inputs": 6}]


def test_the_float_twin_is_not_packed(traced_models: TracedModels):
    program = staged(traced_models, "gqa", POINTS["packed int8"]).programs.programs["prefill"]
    twin = float_twin(program)
    assert "UnpackedWeight" not in {node.op for node in twin.program.graph.nodes}
    assert len(twin.linears) == 14
    for linear in twin.linears:
        packed = program.weights[linear.parameter]
        assert linear.codes is unpacked(packed)
        assert twin.program.weights[linear.parameter] == widened(linear.codes)


def test_calibrated_codes_are_packed(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["packed int8"])
    program = model.programs.programs["decode"]
    name = "model.layers.0.mlp.up_proj.weight"
    codes = unpacked(program.weights[name])
    programs = with_calibrated(model.programs, {codes.key: "its codes"})
    found = programs.programs["decode"].weights[name]
    assert found.key == "pack(file(its codes))"
    values = np.random.default_rng(1).integers(-127, 128, codes.shape).astype(np.int8)
    tiles = value(found, lambda _name, start, stop: values[start:stop])
    assert tiles.shape == program.weights[name].shape
    np.testing.assert_array_equal(tiles[0, 0, 1, 2, 3], values[16 + 3, 8:12])


def test_ranks_cannot_be_made_of_packed_weights(traced_models: TracedModels):
    model = staged(traced_models, "mha", POINTS["packed bfloat16"])
    shards = [ShardTensorParallel(ways=2, rank=rank) for rank in range(2)]
    with pytest.raises(CompilerError, match=r"its weight .*\.weight is packed already"):
        shard(model.programs, shards, invariants={})


def test_options():
    assert PackWeights().promise() == Contract.exact()
    assert not PackWeights.changes_signature
    assert PackWeights().required() == ()
