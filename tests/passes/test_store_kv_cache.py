"""KV caches in int8 and in 16 bits: rounded once where they are written, read back as they are."""

from typing import get_args

import ml_dtypes
import numpy as np
import onnx
import pytest
from attention_graph import CONTEXT, LENGTHS, TEXT, random_inputs
from program_runs import reasons, run_pass, run_program
from program_text import Golden, program_from_text, text_of
from traced_models import CONTEXT as TRACED_CONTEXT
from traced_models import TracedModels

from compiler.contracts.int8_scales import quantized_rows
from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Program, TensorSpec
from compiler.numerics.float64 import RoundingCheck, widened_floats
from compiler.numerics.measured_pass import MeasuredPhase
from compiler.numerics.reference_run import run_model
from passes._match import replace_uses
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.plan_kv_cache import PlanKVCache
from passes.store_kv_cache import QUANTIZED_ROWS, WIDENED_CACHE, CacheDtype, StoreKVCache

NARROW: tuple[CacheDtype, ...] = ("int8", "bfloat16", "float16")
UPDATES = ("attn/Concat/CacheUpdate", "attn/Concat_1/CacheUpdate")


def planned(*, is_fused: bool = True) -> Program:
    program = program_from_text(TEXT, context=CONTEXT)
    run_pass(FoldMask(), program)
    run_pass(PlanKVCache(), program)
    if is_fused:
        assert run_pass(FuseAttention(), program).rewrites
    return program


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_golden(golden: Golden, dtype: CacheDtype):
    program = planned()
    report = run_pass(StoreKVCache(dtype), program)
    golden(f"store-kv-cache.{dtype}.txt", text_of(program))
    assert (report.rewrites, report.skips) == (UPDATES, ())
    names = {"QuantizedRows", "WidenedCache"} if dtype == "int8" else set()
    assert {"QuantizedRows", "WidenedCache"} & set(program.functions) == names


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_attention_reads_back_what_was_rounded(dtype: CacheDtype, is_fused: bool):
    """As the graph before does that reads what the new one's caches hold, and writes nothing."""
    program, rewriting = planned(is_fused=is_fused), StoreKVCache(dtype)
    for past, valid in LENGTHS:
        before, after = program.copy(), program.copy()
        inputs = random_inputs(before, past=past, valid=valid)
        run_pass(rewriting, after)
        found = run_program(after, rewriting.adapt_inputs(inputs, after))
        for update in [node for node in before.graph.nodes if node.op == "CacheUpdate"]:
            cache, present = update.inputs[0], update.outputs[0]
            inputs[cache.name] = wide(found, present.name)
            replace_uses(before.graph, present, cache, readers=list(present.outputs))
        wanted = run_program(before, inputs)["logits"][:, :valid]
        np.testing.assert_allclose(found["logits"][:, :valid], wanted, rtol=1e-6, atol=1e-6)


def wide(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    scales = arrays.get(f"{name}_scale")
    value = arrays[name].astype(np.float32)
    return value if scales is None else value * scales


@pytest.mark.parametrize("dtype", NARROW)
def test_caches_hold_the_rounded_rows(dtype: CacheDtype):
    program, rewriting = planned(), StoreKVCache(dtype)
    for past, valid in LENGTHS:
        before, after = program.copy(), program.copy()
        inputs = random_inputs(before, past=past, valid=valid)
        old = run_program(before, inputs)
        run_pass(rewriting, after)
        found = run_program(after, rewriting.adapt_inputs(inputs, after))
        # One layer: what is written depends on no cache.
        wanted = rewriting.adapt_outputs(old, inputs, after)
        for name in after.aliases:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
            assert found[name].dtype == wanted[name].dtype


def test_rows_are_rounded_by_head_and_token_to_even():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "graphlower" : 1]>\n'
        "main (float[4, 2, 7] x) => (int8[4, 2, 7] codes, float[4, 2, 1] scales, "
        "float[4, 2, 7] back)\n"
        "{ codes, scales = graphlower.QuantizedRows (x) "
        "back = graphlower.WidenedCache (codes, scales) }"
    )
    model.functions.extend((QUANTIZED_ROWS, WIDENED_CACHE))
    x = np.random.default_rng(5).standard_normal((4, 2, 7), dtype=np.float32)
    x[0, 0] = [127, 0.5, 1.5, -0.5, -2.5, 126.5, -126.5]
    x[0, 1] = -254
    x[1, 0] = 0
    x[1, 1] = 1e-38  # normal, but not its 127th part
    x[2] *= 1e30
    found = run_model(model, {"x": x})
    assert found["codes"].dtype == np.int8
    assert found["codes"][0, 0].tolist() == [127, 0, 2, 0, -2, 126, -126]
    assert found["codes"][0, 1].tolist() == [-127] * 7
    assert found["scales"][:2, :, 0].tolist() == [[1, 2], [1, 1]]
    assert not found["codes"][1].any()
    absmax = np.abs(x).max(axis=-1)
    np.testing.assert_array_equal(found["scales"][2:, :, 0], absmax[2:] / np.float32(127))
    assert (np.abs(found["codes"][2:]).max(axis=-1) == 127).all()
    assert (np.abs(found["back"] - x).max(axis=-1)[2:] <= absmax[2:] / 253).all()
    codes, scales = quantized_rows(x)
    np.testing.assert_array_equal(found["codes"], codes)
    np.testing.assert_array_equal(found["scales"], scales)


@pytest.mark.parametrize("dtype", NARROW)
def test_every_cache_of_a_model(traced_models: TracedModels, dtype: CacheDtype):
    shape = (TRACED_CONTEXT, 3, 16)
    for program in traced_models.programs("own-head-dim"):
        for rewriting in (FoldMask(), PlanKVCache()):
            run_pass(rewriting, program)
        assert len(run_pass(StoreKVCache(dtype), program).rewrites) == 4
        specs: list[tuple[str, str, tuple[int, ...]]] = []
        for name in (f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")):
            specs.append((name, dtype, shape))
            if dtype == "int8":
                specs.append((f"{name}_scale", "float32", (*shape[:2], 1)))
        given, made = (
            tuple(TensorSpec(f"{stem}.{name}", kind, axes) for name, kind, axes in specs)
            for stem in ("past_key_values", "present")
        )
        assert program.inputs()[3:] == given
        assert program.outputs()[1:] == made
        names = [(one.name, other.name) for one, other in zip(made, given, strict=True)]
        assert program.aliases == dict(names)
        assert program.copy().inputs() == program.inputs()


@pytest.mark.parametrize("dtype", NARROW)
def test_in_float64_nothing_is_rounded(traced_models: TracedModels, dtype: CacheDtype):
    """Which a graph that rounds by another scale than it widens by is not equal to."""
    rewriting = StoreKVCache(dtype)
    for phase in ("prefill", "decode"):
        probe = traced_models.probe("gqa")
        program = probe.programs.programs[phase]
        for earlier in (FoldConstants(), FoldMask(), PlanKVCache()):
            run_pass(earlier, program)
        numbers = MeasuredPhase(program, probe.read, vocabulary=probe.vocabulary)
        run_pass(rewriting, program)
        assert numbers.follow(rewriting, program).error > 0


def test_a_wrong_scale_is_seen_in_float64():
    program, rewriting = planned(), StoreKVCache("int8")
    inputs = random_inputs(program, past=3, valid=2)
    after = program.copy()
    run_pass(rewriting, after)
    unrounded = rewriting.adapt_inputs(widened_floats(inputs), after)

    def wanted(old):
        return rewriting.adapt_outputs(old, inputs, after)

    assert RoundingCheck(program.model(), after.model()).breach(inputs, unrounded, wanted) is None
    keys, values = (node for node in after.graph.nodes if node.op == "WidenedCache")
    keys.inputs[1], values.inputs[1] = values.inputs[1], keys.inputs[1]
    breach = RoundingCheck(program.model(), after.model()).breach(inputs, unrounded, wanted)
    assert breach is not None
    assert breach.output == "logits"


# -- what is declined, and what is no change


@pytest.mark.parametrize("dtype", NARROW)
def test_a_second_run_rewrites_nothing(dtype: CacheDtype):
    program = planned()
    run_pass(StoreKVCache(dtype), program)
    once = text_of(program)
    for again in NARROW:
        declined = reasons(run_pass(StoreKVCache(again), program))
        assert declined == dict.fromkeys(UPDATES, f"its cache is {dtype} already")
        assert text_of(program) == once


def test_float32_is_what_it_was():
    program = planned()
    before = text_of(program)
    report = run_pass(StoreKVCache("float32"), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == before
    assert StoreKVCache("float32").promise() == Contract.exact()


def test_growing_caches_are_declined():
    program = program_from_text(TEXT)
    assert reasons(run_pass(StoreKVCache("int8"), program)) == {
        "graph": "there is no CacheUpdate: plan-kv-cache declined"
    }


def test_a_cache_that_is_no_output_is_declined_and_then_all_are_left():
    program = planned()
    del program.aliases["present.0.value"]
    before = text_of(program)
    assert reasons(run_pass(StoreKVCache("int8"), program)) == {
        "attn/Concat_1/CacheUpdate": "it updates no cache of the graph"
    }
    assert text_of(program) == before


@pytest.mark.parametrize("dtype", NARROW)
def test_adapters_round_float32_and_leave_float64(dtype: CacheDtype):
    program, rewriting = planned(), StoreKVCache(dtype)
    inputs = random_inputs(program, past=3, valid=2)
    run_pass(rewriting, program)
    name, key = "past_key_values.0.key", inputs["past_key_values.0.key"]
    adapted = rewriting.adapt_inputs(inputs, program)
    unrounded = rewriting.adapt_inputs(widened_floats(inputs), program)
    assert not np.array_equal(wide(adapted, name), key)
    np.testing.assert_allclose(wide(unrounded, name), key, rtol=1e-6)
    kind = {"int8": np.int8, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    assert (adapted[name].dtype, unrounded[name].dtype) == (kind, np.float64)
    given = {"present.0.key": key}
    made = rewriting.adapt_outputs(given, inputs, program)["present.0.key"]
    # The reference gives bfloat16 in float32.
    assert made.dtype == (np.float32 if dtype == "bfloat16" else kind)
    np.testing.assert_array_equal(made.astype(np.float32), adapted[name].astype(np.float32))


def test_options():
    one = StoreKVCache("int8")
    assert one.required() == ("plan-kv-cache",)
    assert {"fuse-attention", "cast-dtype", "annotate-int8-qdq"} < set(one.after)
    assert one.promise() == Contract.rounds(atol=128 / 254)
    assert StoreKVCache("bfloat16").promise() == Contract.rounds(atol=0.5)
    assert get_args(CacheDtype) == (*NARROW, "float32")
