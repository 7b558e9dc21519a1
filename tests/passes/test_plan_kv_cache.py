"""Growing caches become static ones, of which only the valid rows are written."""

import numpy as np
import onnx
import pytest
from attention_graph import CONTEXT, LENGTHS, TEXT, random_inputs
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import CONTEXT as TRACED_CONTEXT
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase, Program, TensorSpec
from compiler.numerics.reference_run import run_model
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.plan_kv_cache import CACHE_UPDATE, PlanKVCache


def folded(text: str = TEXT) -> Program:
    program = program_from_text(text, context=CONTEXT)
    assert run_pass(FoldMask(), program).rewrites == ("mask",)
    return program


def test_golden(golden: Golden):
    program = folded()
    report = run_pass(PlanKVCache(), program)
    golden("plan-kv-cache.after.txt", text_of(program))
    assert report.rewrites == ("attn/Concat", "attn/Concat_1")
    assert report.skips == ()
    assert program.functions["CacheUpdate"] is CACHE_UPDATE


def test_a_second_run_rewrites_nothing():
    program = folded()
    run_pass(PlanKVCache(), program)
    once = text_of(program)
    assert reasons(run_pass(PlanKVCache(), program)) == {
        "past_key_values": "the caches are static already"
    }
    assert text_of(program) == once


@pytest.mark.parametrize(("past", "valid"), LENGTHS)
def test_the_small_graph_gives_the_same_numbers(past: int, valid: int):
    program, rewriting = folded(), PlanKVCache()
    inputs = random_inputs(program, past=past, valid=valid)
    old = run_program(program, inputs)
    run_pass(rewriting, program)
    found = run_program(program, rewriting.adapt_inputs(inputs, program))
    wanted = rewriting.adapt_outputs(old, inputs, program)
    promise = rewriting.promise()
    assert promise == Contract.close(rtol=1e-5, atol=1e-5)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            found[name], value, rtol=promise.rtol, atol=promise.atol, err_msg=name
        )


@pytest.mark.parametrize(
    ("phase", "past", "valid"),
    [
        ("prefill", 0, WINDOW),
        ("prefill", 0, 5),
        ("prefill", 24, WINDOW),
        ("prefill", TRACED_CONTEXT - 1, 1),
        ("decode", 0, 1),
        ("decode", 17, 1),
        ("decode", TRACED_CONTEXT - 1, 1),
    ],
)
@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_traced_models_give_the_same_numbers(
    traced_models: TracedModels, name: str, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs(name).programs[phase],
        traced_models.checkpoint(name),
    )
    run_pass(FoldConstants(), program)
    run_pass(FoldMask(), program)
    given = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY) | {
        "attention_mask": (np.arange(past + program.tokens) < past + valid).astype(np.int64)[None],
        "position_ids": np.arange(past, past + program.tokens)[None],
    }
    inputs = FoldMask().adapt_inputs(given, program)
    old = run_program(program, inputs, checkpoint)
    rewriting = PlanKVCache()
    assert len(run_pass(rewriting, program).rewrites) == 4
    found = run_program(program, rewriting.adapt_inputs(inputs, program), checkpoint)
    wanted = rewriting.adapt_outputs(old, inputs, program)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)


def test_caches_are_static_and_aliased(traced_models: TracedModels):
    for program in traced_models.programs("own-head-dim"):
        run_pass(FoldMask(), program)
        run_pass(PlanKVCache(), program)
        caches = [f"{index}.{kind}" for index in range(2) for kind in ("key", "value")]
        assert program.inputs()[3:] == tuple(
            TensorSpec(f"past_key_values.{name}", "float32", (TRACED_CONTEXT, 3, 16))
            for name in caches
        )
        assert program.outputs()[1:] == tuple(
            TensorSpec(f"present.{name}", "float32", (TRACED_CONTEXT, 3, 16)) for name in caches
        )
        assert program.aliases == {f"present.{n}": f"past_key_values.{n}" for n in caches}
        assert all(isinstance(axis, int) for spec in program.inputs() for axis in spec.shape)


# -- what is written


@pytest.mark.parametrize(
    ("past", "valid"), [(0, 4), (0, 1), (3, 2), (6, 4), (7, 3), (9, 1), (5, 0)]
)
def test_only_valid_rows_are_written(past: int, valid: int):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "graphlower" : 1]>\n'
        "main (float[10, 2, 3] cache, float[4, 2, 3] rows, int64[1] past, int64[1] valid) "
        "=> (float[10, 2, 3] updated)\n"
        "{ updated = graphlower.CacheUpdate <context: int = 10> (cache, rows, past, valid) }"
    )
    model.functions.append(CACHE_UPDATE)
    random = np.random.default_rng(6)
    cache = random.standard_normal((10, 2, 3), dtype=np.float32)
    rows = random.standard_normal((4, 2, 3), dtype=np.float32)
    lengths = {"past": np.array([past]), "valid": np.array([valid])}
    found = run_model(model, {"cache": cache, "rows": rows, **lengths})["updated"]
    wanted = cache.copy()
    wanted[past : past + valid] = rows[:valid]
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(("past", "valid"), LENGTHS)
def test_the_graph_keeps_every_other_row(past: int, valid: int):
    program = folded()
    inputs = random_inputs(program, past=past, valid=valid)
    run_pass(PlanKVCache(), program)
    adapted = PlanKVCache().adapt_inputs(inputs, program)
    for name in program.aliases.values():
        adapted[name][past:] = 77.0
    found = run_program(program, adapted)
    for output, cache in program.aliases.items():
        kept = np.r_[0:past, past + valid : CONTEXT]
        np.testing.assert_array_equal(found[output][kept], adapted[cache][kept])
        assert not (found[output][past : past + valid] == 77.0).any()
    assert np.isfinite(found["logits"]).all()


def test_stale_rows_are_never_seen():
    program = folded()
    inputs = random_inputs(program, past=3, valid=2)
    run_pass(PlanKVCache(), program)
    adapted = PlanKVCache().adapt_inputs(inputs, program)
    wanted = run_program(program, adapted)["logits"][:, :2]
    for name in program.aliases.values():
        adapted[name][5:] = 1e4
    assert run_program(program, adapted)["logits"][:, :2].tobytes() == wanted.tobytes()


# -- what is declined

CONCAT = '["attn/Concat"] "present.0.key" = Concat <axis: int = 2> ("past_key_values.0.key", k)'
DECLINED = {
    "another axis": (
        {
            CONCAT: CONCAT.replace("int = 2", "int = 1"),
            'float[1, 1, "past + 4", 3] "present.0.key"': 'float[1, m, n, 3] "present.0.key"',
        },
        "attn/Concat joins on axis 1, expected 2",
    ),
    "the new rows come first": (
        {CONCAT: CONCAT.replace('("past_key_values.0.key", k)', '(k, "past_key_values.0.key")')},
        "attn/Concat does not append to it",
    ),
    "several readers": (
        {
            CONCAT: f'{CONCAT}\n["attn/Neg"] negated = Neg ("past_key_values.0.key")',
            "Add (embedded, sines)": "Add (embedded, touched)",
            '["attn/Add"]': (
                '["attn/ReduceSum"] all = ReduceSum <keepdims: int = 0> (negated)\n'
                '["attn/Add_2"] touched = Add (sines, all)\n["attn/Add"]'
            ),
        },
        "it is read by ['attn/Concat', 'attn/Neg'], expected one Concat",
    ),
    "no Concat": (
        {CONCAT: CONCAT.replace("Concat <axis: int = 2>", "Add")},
        "it is read by ['attn/Concat'], expected one Concat",
    ),
    "not an output": (
        {
            CONCAT: CONCAT.replace('"present.0.key" =', "joined ="),
            '["attn/Unsqueeze"]': '["attn/Neg"] "present.0.key" = Neg (joined)\n["attn/Unsqueeze"]',
        },
        "attn/Concat is no output of the graph",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_another_cache_is_declined(case: str):
    replaced, reason = DECLINED[case]
    program = program_from_text(changed(TEXT, replaced), context=CONTEXT)
    FoldMask().run(program)
    before = text_of(program)
    assert reasons(PlanKVCache().run(program)) == {"past_key_values.0.key": reason}
    assert text_of(program) == before


def test_without_fold_mask_it_declines():
    program = program_from_text(TEXT)
    assert reasons(run_pass(PlanKVCache(), program)) == {
        "graph": "there is no past_length input: fold-mask declined"
    }


def test_a_transpose_before_the_cache_is_undone_or_added():
    program = folded()
    run_pass(PlanKVCache(), program)
    rows = next(node for node in program.graph.nodes if node.name == "attn/Concat/rows")
    assert rows.inputs[0].inputs[0].name == "attn/Reshape_1"
    text = changed(
        TEXT,
        {
            '("past_key_values.0.key", k)': '("past_key_values.0.key", doubled)',
            '["attn/Transpose_2"]': '["attn/Add_2"] doubled = Add (k, k)\n["attn/Transpose_2"]',
        },
    )
    program = folded(text)
    inputs = random_inputs(program, past=2, valid=4)
    old = run_program(program, inputs)
    run_pass(PlanKVCache(), program)
    found = run_program(program, PlanKVCache().adapt_inputs(inputs, program))
    wanted = PlanKVCache().adapt_outputs(old, inputs, program)
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["present.0.key"], wanted["present.0.key"])


def test_options():
    assert PlanKVCache().required() == ("fold-mask",)
    assert PlanKVCache.changes_signature
    assert PlanKVCache.phases == ("prefill", "decode")
