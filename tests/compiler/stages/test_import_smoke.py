"""Exports beside the usual: opset 20 with a past, and a graph without one, for what is matched."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from exported_models import SIZES, VOCABULARY, export_quietly
from program_runs import adapted, run_program, traced_inputs

from compiler import registry
from compiler.config import EXPORTED_PASSES
from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import OPSET, Program, quiet_graphsurgeon
from compiler.contracts.weight_values import value
from compiler.contracts.weights import source
from compiler.numerics.reference_run import run_model
from compiler.pass_order import PlannedPass
from compiler.stages.import_onnx import import_onnx, locate_onnx
from compiler.stages.rewrite import rewrite

pytestmark = pytest.mark.slow

LAYERS, WINDOW, CONTEXT = 2, 16, 40
FUSIONS = ("fuse-attention", "fuse-rms-norm", "fuse-silu-mul", "fuse-rotary", "store-weights")


def qwen2() -> object:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config.from_dict({**SIZES, "num_hidden_layers": LAYERS})
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def export_without_past(file: Path) -> onnx.ModelProto:
    """Ids in, logits out."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    model = qwen2()
    assert isinstance(model, torch.nn.Module)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        ids = torch.ones(1, WINDOW, dtype=torch.long)
        program = torch.onnx.export(
            Logits(model), (ids,), dynamo=True, opset_version=OPSET, verbose=False
        )
    assert program is not None
    program.save(str(file))
    return onnx.load(file)


def as_program(model: onnx.ModelProto) -> Program:
    """Matrices and vectors as parameters, under the file's names."""
    quiet_graphsurgeon()
    graph = gs.import_onnx(model)
    weights = {}
    for name, tensor in graph.tensors().items():
        if not isinstance(tensor, gs.Constant) or tensor.values.nbytes <= 200:
            continue
        weights[name] = source(name, tuple(tensor.shape), "float32")
        parameter = gs.Variable(name, np.dtype(np.float32), list(tensor.shape))
        for node in list(tensor.outputs):
            node.inputs = [parameter if one is tensor else one for one in node.inputs]
        graph.inputs.append(parameter)
    for index, node in enumerate(graph.nodes):
        node.name, node.domain = f"node_{index}/{node.op}", node.domain or None
    shapes = {name: weight.shape for name, weight in weights.items()}
    return Program("prefill", graph, WINDOW, WINDOW, LAYERS, weights, checkpoint_tensors=shapes)


def test_opset_20_with_a_past(tmp_path: Path):
    file = export_quietly(qwen2(), tmp_path / "model.onnx")
    checkpoint = locate_onnx(file, window=WINDOW)
    programs = import_onnx(file, checkpoint, window=WINDOW, context=CONTEXT)
    traced = programs.programs["prefill"]
    inputs = traced_inputs(traced, past=5, valid=7, vocabulary=VOCABULARY)
    wanted = run_program(traced, inputs, checkpoint)["logits"][:, 6]
    passes = [registry.load_pass(name)() for name in (*EXPORTED_PASSES, *FUSIONS)]
    done = rewrite(programs, [PlannedPass(one, "test") for one in passes])
    fired = {r.name: r.rewrites for r in done.records if r.phase == "prefill"}
    assert {name: fired[name] for name in FUSIONS[:4]} == {
        "fuse-attention": LAYERS,
        "fuse-rms-norm": 2 * LAYERS + 1,
        "fuse-silu-mul": LAYERS,
        "fuse-rotary": 2 * LAYERS,
    }
    program = done.programs.programs["prefill"]
    given = adapted(dict.fromkeys(passes, program), inputs)
    found = run_program(program, given, checkpoint)["logits"][:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_passes_match_a_graph_without_a_past(tmp_path: Path):
    model = export_without_past(tmp_path / "model.onnx")
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (1, WINDOW))
    (wanted,) = run_model(model, {model.graph.input[0].name: ids}).values()
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    program = as_program(model)
    fired = {}
    for name in ("fold-shapes", "fold-constants", "fuse-gate-up", *FUSIONS[1:4], "eliminate-dead"):
        report = registry.load_pass(name)().run(program)
        program.prune_parameters()
        fired[name] = len(report.rewrites)
    assert {name: fired[name] for name in ("fuse-gate-up", *FUSIONS[1:4])} == {
        "fuse-gate-up": LAYERS,
        "fuse-rms-norm": 2 * LAYERS + 1,
        "fuse-silu-mul": LAYERS,
        "fuse-rotary": 2 * LAYERS,
    }

    def read(name: str, start: int, stop: int) -> np.ndarray:
        return values[name][start:stop]

    parameters = {name: value(weight, read) for name, weight in program.weights.items()}
    given = {program.inputs()[0].name: ids, **parameters}
    (found,) = run_model(program.model(), given).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_build_from_a_graph_without_a_past_is_refused(tmp_path: Path):
    file = tmp_path / "model.onnx"
    export_without_past(file)
    with pytest.raises(CheckpointError) as caught:
        locate_onnx(file, window=WINDOW)
    assert str(file) in str(caught.value)
