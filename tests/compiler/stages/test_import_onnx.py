"""An exporter's file becomes the programs of a traced model, with the file's own numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from canonical_text import canonical_text
from exported_models import HEAD_DIM, KV_HEADS, LAYERS, VARIANTS, VOCABULARY, exported, write_export
from program_runs import adapted, run_program, traced_inputs, valid_part
from scrambled_models import scrambled, with_scale
from traced_models import CONTEXT, WINDOW, TracedModels

from compiler import registry
from compiler.config import EXPORTED_PASSES
from compiler.contracts.errors import CompilerError
from compiler.contracts.pass_base import Contract, Pass, PassReport
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.reference_run import run_model
from compiler.stages.import_onnx import import_onnx, locate_onnx, probe_onnx
from compiler.stages.rewrite import PlannedPass, rewrite

PASSES = (*EXPORTED_PASSES, "fuse-attention", "fuse-rms-norm", "fuse-silu-mul", "store-weights")
TOLERANCE = 2e-5
# (phase, past, valid): whole, padded, after a past, one token.
RUNS: tuple[tuple[Phase, int, int], ...] = (
    ("prefill", 0, WINDOW),
    ("prefill", 5, 3),
    ("decode", 0, 1),
    ("decode", 20, 1),
)


def planned() -> list[Pass]:
    return [registry.load_pass(name)() for name in PASSES]


def imported(path: Path) -> tuple[CheckpointRef, ProgramSet]:
    checkpoint = locate_onnx(path, window=WINDOW)
    return checkpoint, import_onnx(path, checkpoint, window=WINDOW, context=CONTEXT)


def rewritten(programs: ProgramSet) -> ProgramSet:
    return rewrite(programs, [PlannedPass(one, "test") for one in planned()]).programs


def file_outputs(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What the file itself gives on onnxruntime, in its order."""
    feeds = dict(zip((value.name for value in model.graph.input), inputs.values(), strict=True))
    return list(run_model(model, feeds).values())


def wanted_outputs(
    program: Program, model: onnx.ModelProto, *, past: int, valid: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of a traced graph, and what the file gives for them under its names."""
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    names = [
        "logits",
        *(s.name.replace("past_key_values", "present") for s in program.inputs()[3:]),
    ]
    return inputs, dict(zip(names, file_outputs(model, inputs), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_imported_graph_gives_the_numbers_of_the_file(tmp_path: Path, variant: str) -> None:
    model = exported(variant)
    checkpoint, programs = imported(write_export(tmp_path / "model.onnx", variant))
    for phase, past, valid in RUNS:
        program = programs.programs[phase]
        inputs, wanted = wanted_outputs(program, model, past=past, valid=valid)
        found = run_program(program, inputs, checkpoint)
        assert list(found) == list(wanted)
        for name, value in valid_part(found, past=past, valid=valid).items():
            kept = valid_part({name: wanted[name]}, past=past, valid=valid)[name]
            np.testing.assert_allclose(value, kept, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_after_all_passes_the_graph_is_that_of_the_trace(
    tmp_path: Path, traced_models: TracedModels, variant: str
) -> None:
    ours = rewritten(traced_models.programs("own-head-dim", layers=LAYERS))
    _, programs = imported(write_export(tmp_path / "model.onnx", variant))
    theirs = rewritten(programs)
    for phase in ours.programs:
        assert canonical_text(theirs.programs[phase]) == canonical_text(ours.programs[phase])


def assert_numbers_of_the_file(
    program: Program, before: Program, model: onnx.ModelProto, checkpoint: CheckpointRef
) -> None:
    """The rewritten program gives for real tokens what the file gives."""
    for _, past, valid in (run for run in RUNS if run[0] == program.phase):
        inputs, wanted = wanted_outputs(before, model, past=past, valid=valid)
        stages = {one: program for one in planned() if program.phase in one.phases}
        found = run_program(program, adapted(stages, inputs), checkpoint)
        row = valid - 1 if program.phase == "prefill" else 0
        np.testing.assert_allclose(
            found["logits"][0, 0], wanted["logits"][0, row], rtol=TOLERANCE, atol=TOLERANCE
        )
        for name in (name for name in wanted if name != "logits"):
            rows = wanted[name][0, :, : past + valid].transpose(1, 0, 2)
            np.testing.assert_allclose(
                found[name][: past + valid], rows, rtol=TOLERANCE, atol=TOLERANCE
            )


@pytest.mark.parametrize("variant", VARIANTS)
def test_after_all_passes_the_numbers_are_those_of_the_file(tmp_path: Path, variant: str) -> None:
    path = write_export(tmp_path / "model.onnx", variant)
    checkpoint, programs = imported(path)
    _, before = imported(path)
    for phase, program in rewritten(programs).programs.items():
        assert_numbers_of_the_file(program, before.programs[phase], exported(variant), checkpoint)


def test_nodes_and_weights_are_named_by_their_modules(
    tmp_path: Path, traced_models: TracedModels
) -> None:
    checkpoint, programs = imported(write_export(tmp_path / "model.onnx"))
    traced = traced_models.checkpoint("own-head-dim", layers=LAYERS)
    names = [node.name for node in programs.programs["decode"].graph.nodes]
    linears = {name for name in names if name.endswith("_proj/MatMul")}

    assert set(checkpoint.tensors) == set(traced.tensors)
    assert {"lm_head/MatMul", "model.embed_tokens/Gather", "model.norm/Pow"} <= set(names)
    assert len(linears) == 7 * LAYERS
    assert "model.layers.3.self_attn.v_proj/Add" in names
    assert "model.layers.3.mlp/Sigmoid" in names
    assert "model.layers.2.post_attention_layernorm/ReduceMean" in names
    assert len(set(names)) == len(names)
    assert not [name for name in names if "val_" in name or "node_" in name]


def test_what_the_model_is_comes_from_the_graph(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": 99}')
    config = locate_onnx(path, window=WINDOW).config
    assert config["model_type"] == "qwen2"
    assert config["num_hidden_layers"] == LAYERS
    assert config["num_attention_heads"] == 6
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["head_dim"] == HEAD_DIM
    assert config["vocab_size"] == VOCABULARY
    assert (config["hidden_size"], config["intermediate_size"]) == (64, 48)


PLACES = (
    "queries",
    "new key",
    "value before the cache",
    "scores",
    "weights",
    "context",
    "attention's output",
    "residual",
    "gate",
    "down",
)


@pytest.mark.parametrize(
    ("variant", "place"),
    [*(("eager_18", place) for place in PLACES), ("sdpa_23", "new key"), ("sdpa_23", "residual")],
)
def test_a_scale_in_layer_3_of_a_renamed_graph_is_kept(
    tmp_path: Path, variant: str, place: str
) -> None:
    """Every name is random; the numbers are the changed graph's, never stock Qwen2's."""
    plain = exported(variant)
    model = scrambled(with_scale(plain, layer=3, place=place), seed=5)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    checkpoint, programs = imported(path)
    _, before = imported(path)
    for phase, program in rewritten(programs).programs.items():
        assert_numbers_of_the_file(program, before.programs[phase], model, checkpoint)
    inputs, scaled = wanted_outputs(before.programs["prefill"], model, past=4, valid=WINDOW)
    unscaled = file_outputs(plain, inputs)[0]
    assert np.abs(scaled["logits"] - unscaled).max() > 20 * TOLERANCE


def test_names_of_the_file_decide_nothing(tmp_path: Path) -> None:
    texts = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.onnx"
        onnx.save(scrambled(exported("sdpa_18"), seed=seed), path)
        checkpoint, programs = imported(path)
        graph = programs.programs["prefill"].graph
        nodes = [(n.name, [t.name for t in n.inputs]) for n in graph.nodes]
        texts.append((sorted(nodes), sorted(checkpoint.tensors)))
    assert texts[0] == texts[1]


FUSIONS = ("fuse-qkv", "fuse-gate-up", "fuse-rotary")


def test_fusions_find_in_an_export_what_they_find_in_a_trace(
    tmp_path: Path, traced_models: TracedModels
) -> None:
    _, programs = imported(write_export(tmp_path / "model.onnx", "sdpa_18"))
    counts = []
    for given in (programs, traced_models.programs("own-head-dim", layers=LAYERS)):
        names = (*EXPORTED_PASSES, *FUSIONS)
        done = rewrite(given, [PlannedPass(registry.load_pass(name)(), "test") for name in names])
        counts.append([(r.name, r.phase, r.rewrites) for r in done.records if r.name in FUSIONS])
    assert counts[0] == counts[1]
    assert all(count >= LAYERS for _, _, count in counts[0])


def test_the_probe_is_the_same_graph_at_small_widths(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model.onnx", "sdpa_23")
    checkpoint, programs = imported(path)
    probe = probe_onnx(path, window=WINDOW, context=CONTEXT)
    real, small = programs.programs["prefill"], probe.programs.programs["prefill"]
    assert [node.name for node in small.graph.nodes] == [node.name for node in real.graph.nodes]
    shapes = {name: weight.shape for name, weight in small.weights.items()}
    assert shapes["model.embed_tokens.weight"] == (32, 24)
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (24, 96)
    assert shapes["model.layers.3.mlp.down_proj.weight"] == (40, 24)
    assert shapes["model.layers.3.self_attn.v_proj.bias"] == (48,)
    assert shapes["lm_head.weight"] == (24, 32)
    assert probe.vocabulary == 32
    planned_passes = [PlannedPass(one, "test") for one in planned()]
    done = rewrite(programs, planned_passes, probe=probe)
    assert {record.name for record in done.records} == set(PASSES)
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (VOCABULARY, 64)


def test_a_lost_bias_of_an_imported_graph_fails_the_build_naming_the_layer(tmp_path: Path) -> None:
    path = write_export(tmp_path / "model.onnx", "eager_18")
    _, programs = imported(path)
    probe = probe_onnx(path, window=WINDOW, context=CONTEXT)
    faulty = PlannedPass(LoseBias(), "test")
    with pytest.raises(CompilerError, match=r"layer 2, at model\.layers\.2\.self_attn"):
        rewrite(programs, [faulty], probe=probe)


@dataclass(frozen=True)
class LoseBias(Pass):
    """Drops a bias of one layer, and says that nothing changed."""

    name: ClassVar = "lose-bias"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Read the product past its sum."""
        total = next(
            n for n in program.graph.nodes if n.name == "model.layers.2.self_attn.k_proj/Add"
        )
        product, output = total.inputs[0], total.outputs[0]
        for reader in list(output.outputs):
            reader.inputs = [product if tensor is output else tensor for tensor in reader.inputs]
        total.outputs.clear()
        program.graph.nodes = [node for node in program.graph.nodes if node is not total]
        total.inputs.clear()
        return PassReport((product.name,))
