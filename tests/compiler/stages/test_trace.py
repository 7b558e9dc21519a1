"""The trace: stitched equals full, named by module, without weights, and equal in every process."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from checkpoint_factory import write_checkpoint
from traced_models import CONTEXT, VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import TraceError
from compiler.contracts.program import CONSTANT_BYTES, Phase, TensorSpec
from compiler.contracts.provenance import layer_of
from compiler.contracts.weights import CheckpointRef, StoredTensor
from compiler.stages import trace as trace_stage
from compiler.stages.trace import bind_weights, trace, trace_phase
from models.qwen2 import Qwen2

TOKENS: Mapping[Phase, int] = {"prefill": WINDOW, "decode": 1}


def unreadable(checkpoint: CheckpointRef, *, layers: int = 2) -> CheckpointRef:
    """The same tensors, for any number of layers, in a file that does not exist."""
    config = {**checkpoint.config, "num_hidden_layers": layers}
    tensors = {
        name: StoredTensor(
            Path("/nowhere/model.safetensors"), offset=0, shape=shape, dtype="bfloat16"
        )
        for name, shape in Qwen2().tensors(config).items()
    }
    return replace(checkpoint, config=config, tensors=tensors)


def described(graph: gs.Graph) -> dict[str, object]:
    """All that a graph says, by name: nodes, constants, and the signature in order."""
    nodes = {
        node.name: (
            node.op,
            node.domain,
            sorted((key, repr(attribute)) for key, attribute in node.attrs.items()),
            [tensor.name for tensor in node.inputs],
            [tensor.name for tensor in node.outputs],
        )
        for node in graph.nodes
    }
    assert len(nodes) == len(graph.nodes), "two nodes have one name"
    constants = {
        tensor.name: (str(tensor.values.dtype), tensor.values.shape, tensor.values.tolist())
        for tensor in graph.tensors().values()
        if isinstance(tensor, gs.Constant)
    }
    signature = [
        (tensor.name, str(tensor.dtype), list(tensor.shape))
        for tensor in (*graph.inputs, *graph.outputs)
    ]
    return {"nodes": nodes, "constants": constants, "signature": signature}


# -- stitching


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        *((name, layers) for name in ("mha", "gqa") for layers in (1, 2, 3)),
        # A full layer and sliding ones: another mask enters each kind.
        pytest.param("sliding", 3, marks=pytest.mark.slow),
        pytest.param("qwen3", 2, marks=pytest.mark.slow),
    ],
)
def test_stitched_layers_equal_a_full_trace(
    traced_models: TracedModels, name: str, layers: int, phase: Phase
):
    stitched = traced_models.programs(name, layers=layers).programs[phase]
    full = bind_weights(
        traced_models.full_skeleton(name, layers=layers, tokens=TOKENS[phase]),
        traced_models.checkpoint(name, layers=layers),
        phase,
        tokens=TOKENS[phase],
        context=CONTEXT,
        layers=layers,
    )
    wanted, found = described(full.graph), described(stitched.graph)
    assert found["nodes"] == wanted["nodes"]
    assert found["constants"] == wanted["constants"]
    assert found["signature"] == wanted["signature"]
    assert {name: weight.key for name, weight in stitched.weights.items()} == {
        name: weight.key for name, weight in full.weights.items()
    }
    assert stitched.layers == layers


def test_eighty_layers_export_as_many_as_two(traced_models: TracedModels):
    checkpoint = traced_models.checkpoint("gqa")
    asked = {}
    for layers in (2, 80):
        before = len(traced_models.exported)
        program = trace_phase(
            Qwen2(),
            unreadable(checkpoint, layers=layers),
            "decode",
            tokens=1,
            context=CONTEXT,
        )
        asked[layers] = traced_models.exported[before:]
        inside = [node for node in program.graph.nodes if layer_of(node.name) is not None]
        assert {layer_of(node.name) for node in inside} == set(range(layers))
        assert len(inside) % layers == 0
    assert asked[80] == asked[2] == [("full_attention", "full_attention")]


def test_each_layer_reads_the_one_before(traced_models: TracedModels):
    program = traced_models.programs("gqa", layers=3).programs["decode"]
    readers = {
        (layer_of(tensor.inputs[0].name), layer_of(node.name))
        for node in program.graph.nodes
        for tensor in node.inputs
        if tensor.inputs and layer_of(tensor.inputs[0].name) is not None
    }
    assert readers == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, None)}


# -- names, signature, weights


def test_every_node_is_named_by_its_module(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["prefill"]
    names = [node.name for node in program.graph.nodes]
    assert len(set(names)) == len(names)
    for part in ("q_proj", "k_proj", "v_proj"):
        assert {
            f"model.layers.1.self_attn.{part}/MatMul",
            f"model.layers.1.self_attn.{part}/Add",
        } <= set(names)
    assert "lm_head/MatMul" in names
    assert "model.embed_tokens/Gather" in names
    modules = re.compile(
        r"(lm_head|model|model\.(embed_tokens|norm|rotary_emb)|model\.layers\.[01]"
        r"(\.(input_layernorm|post_attention_layernorm|mlp(\.\w+_proj)?|self_attn(\.[qkvo]_proj)?))?)$"
    )
    for node in program.graph.nodes:
        module, _, op = node.name.rpartition("/")
        assert re.fullmatch(rf"{node.op}(_\d+)?", op), node.name
        # Only the lengths of the two dynamic inputs are taken outside of any module.
        assert modules.match(module) or node.op in ("Shape", "Squeeze"), node.name


def test_signature_of_hugging_face(traced_models: TracedModels):
    programs = traced_models.programs("own-head-dim")
    for phase, tokens in TOKENS.items():
        program = programs.programs[phase]
        cache = [f"{index}.{kind}" for index in range(2) for kind in ("key", "value")]
        assert program.inputs() == (
            TensorSpec("input_ids", "int64", (1, tokens)),
            TensorSpec("attention_mask", "int64", (1, f"past + {tokens}")),
            TensorSpec("position_ids", "int64", (1, tokens)),
            *(TensorSpec(f"past_key_values.{n}", "float32", (1, 3, "past", 16)) for n in cache),
        )
        assert program.outputs() == (
            TensorSpec("logits", "float32", (1, tokens, VOCABULARY)),
            *(TensorSpec(f"present.{n}", "float32", (1, 3, f"past + {tokens}", 16)) for n in cache),
        )
        assert (program.phase, program.tokens, program.context) == (phase, tokens, CONTEXT)


def test_without_a_context_only_prefill_is_traced(traced_models: TracedModels):
    checkpoint = traced_models.checkpoint("gqa")
    programs = trace(Qwen2(), checkpoint, window=WINDOW, context=None)
    assert list(programs.programs) == ["prefill"]
    assert programs.programs["prefill"].context == WINDOW


def test_no_weight_is_read(traced_models: TracedModels):
    checkpoint = unreadable(traced_models.checkpoint("gqa"))
    program = trace_phase(Qwen2(), checkpoint, "prefill", tokens=WINDOW, context=CONTEXT)
    assert set(program.weights) == set(checkpoint.tensors)
    with pytest.raises(FileNotFoundError):
        checkpoint.rows("model.norm.weight", 0, 1)


def test_linears_are_matmuls_by_in_out_and_their_bias(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["prefill"]
    name = "model.layers.0.self_attn.k_proj"
    weight = program.weights[f"{name}.weight"]
    assert weight.key == f"transpose(cast({name}.weight, float32))"
    assert (weight.shape, weight.dtype) == ((56, 8), "float32")
    assert program.weights[f"{name}.bias"].key == f"cast({name}.bias, float32)"
    nodes = {node.name: node for node in program.graph.nodes}
    product, total = nodes[f"{name}/MatMul"], nodes[f"{name}/Add"]
    assert product.inputs[1].name == f"{name}.weight"
    assert total.inputs[0] is product.outputs[0]
    assert total.inputs[1].name == f"{name}.bias"


def test_a_tied_head_is_the_embedding(traced_models: TracedModels):
    programs = traced_models.programs("mha")
    assert programs.programs["decode"].weights["lm_head.weight"].key == (
        "transpose(model.embed_tokens.weight)"
    )
    assert programs.programs["decode"].weights["model.embed_tokens.weight"].key == (
        "model.embed_tokens.weight"
    )


def test_an_untied_head_is_its_own(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["decode"]
    assert program.weights["lm_head.weight"].sources() == ("lm_head.weight",)


def test_constants_are_small_and_the_frequencies_are_float32(traced_models: TracedModels):
    program = traced_models.programs("mha").programs["prefill"]
    constants = [
        tensor.values
        for tensor in program.graph.tensors().values()
        if isinstance(tensor, gs.Constant)
    ]
    assert max(value.nbytes for value in constants) <= CONSTANT_BYTES
    wanted = (1e6 ** -(np.arange(0, 16, 2) / 16)).astype(np.float32)
    found = [value for value in constants if value.shape == wanted.shape]
    assert len(found) == 1
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(found[0], wanted, rtol=2e-7)


# -- the same everywhere

_TRACE = """
import hashlib, sys
from pathlib import Path
from compiler.stages.checkpoint import locate_checkpoint
from compiler.stages.trace import trace
from models.qwen2 import Qwen2

checkpoint = locate_checkpoint(sys.argv[1], base=Path("/"), supported=("qwen2",))
programs = trace(Qwen2(), checkpoint, window=16, context=None)
for program in programs:
    Path(sys.argv[2], program.phase).write_bytes(
        program.model().SerializeToString(deterministic=True)
    )
"""


def test_two_processes_trace_the_same_bytes(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "tiny", hidden=32, heads=2, kv_heads=1, layers=1)
    root = Path(trace_stage.__file__).parents[2]
    started = []
    for seed in ("1", "2"):
        place = tmp_path / f"process-{seed}"
        place.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-W", "error", "-c", _TRACE, str(folder), str(place)]
        started.append(
            subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
        )
    for process in started:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    one, other = ((tmp_path / f"process-{seed}" / "prefill").read_bytes() for seed in ("1", "2"))
    assert one == other
    for absolute in (str(root), str(tmp_path), sys.prefix, sys.base_prefix):
        assert absolute.encode() not in one


def test_a_module_that_cannot_be_exported_is_refused(
    traced_models: TracedModels, monkeypatch: pytest.MonkeyPatch
):
    import torch

    def refuse(*_arguments: object, **_options: object) -> None:
        raise torch.onnx.OnnxExporterError("data-dependent branch")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(TraceError) as caught:
        trace_stage._exported(
            Qwen2(), traced_models.checkpoint("gqa").config, ("full_attention",), tokens=5
        )
    assert caught.value.message == "the exporter refused CausalLM: data-dependent branch"
    assert caught.value.hint == "report it with the checkpoint's config.json"
