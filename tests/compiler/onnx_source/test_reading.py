"""What an .onnx file must be: roles by structure, refusals that name file and node."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_models import exported
from traced_models import WINDOW

from compiler.contracts.errors import CheckpointError
from compiler.onnx_source.reading import read_source
from compiler.stages.import_onnx import locate_onnx, onnx_file

Edit = Callable[[onnx.ModelProto], None]


def locate(folder: Path, edit: Edit, variant: str = "eager_18") -> None:
    model = exported(variant)
    edit(model)
    path = folder / "model.onnx"
    onnx.save(model, path)
    locate_onnx(path, window=WINDOW)


def node_of(model: onnx.ModelProto, op: str, index: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == op][index]


def opset(version: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return edit


def renamed(op: str, other: str, domain: str = "") -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, op)
        node.op_type, node.domain = other, domain

    return edit


def without_input(index: int, *, value: np.ndarray) -> Edit:
    """The input becomes a constant."""

    def edit(model: onnx.ModelProto) -> None:
        name = model.graph.input[index].name
        del model.graph.input[index]
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))

    return edit


def fixed(index: int, axis: int, length: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[index].type.tensor_type.shape.dim[axis].dim_value = length

    return edit


def more_input(kind: int, *shape: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("more", kind, shape))

    return edit


def half(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def without_presents(model: onnx.ModelProto) -> None:
    del model.graph.output[1:]


def two_heads(model: onnx.ModelProto) -> None:
    """The logits are a sum of two linears."""
    logits = model.graph.output[0].name
    head = next(node for node in model.graph.node if logits in node.output)
    head.output[0] = "one"
    other = onnx.helper.make_node("MatMul", list(head.input), ["two"], "second head")
    total = onnx.helper.make_node("Add", ["one", "two"], [logits], "sum of heads")
    model.graph.node.extend([other, total])


def another_append(model: onnx.ModelProto) -> None:
    """One past key is joined on its heads."""
    past = model.graph.input[3].name
    node = next(n for n in model.graph.node if n.op_type == "Concat" and past in n.input)
    node.attribute[0].i = 1


REFUSED: dict[str, tuple[Edit, str]] = {
    "an old opset": (opset(17), "it is of opset 17"),
    "a new opset": (opset(99), "it is of opset 99"),
    "another domain": (
        renamed("Sigmoid", "QuickGelu", "com.microsoft"),
        "node 'node_.*': com.microsoft::QuickGelu is not an operator of ONNX's own",
    ),
    "an unknown operator": (renamed("Sigmoid", "Swish"), "opset 20 has no Swish"),
    "a quantized operator": (
        renamed("Sigmoid", "DequantizeLinear"),
        "the model is already quantized",
    ),
    "half precision": (half, "float16 of 2 axes, expected a float32 weight"),
    "no mask": (
        without_input(1, value=np.ones((1, 12), np.int64)),
        "it takes no attention mask",
    ),
    "a past that is fixed": (fixed(3, 2, 7), "the past is fixed"),
    "another batch": (fixed(0, 0, 2), "is fixed to 2 on axis 0, 1 is wanted"),
    "another window": (fixed(0, 1, 5), "is fixed to 5 on axis 1, 16 is wanted"),
    "an input without a role": (
        more_input(onnx.TensorProto.FLOAT, 1, 2),
        "input 'more', float32 \\[1, 2\\], is none that a decoder takes",
    ),
    "two masks": (
        more_input(onnx.TensorProto.INT64, 1, 2),
        "the inputs \\['attention_mask', 'more'\\] have the same role",
    ),
    "caches that are not given back": (without_presents, "makes no output of the graph"),
    "another append": (another_append, "appends on another axis than the tokens'"),
    "two heads": (
        two_heads,
        "the head: expected one node, found 'node_linear_28', 'second head'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_decoder_is_refused(tmp_path: Path, case: str) -> None:
    edit, reason = REFUSED[case]
    with pytest.raises(CheckpointError, match=reason) as caught:
        locate(tmp_path, edit)
    assert caught.value.where == str(tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def attribute(op: str, **values: float | int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, op)
        kept = [one for one in node.attribute if one.name not in values]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in values.items())

    return edit


FORMS: dict[str, tuple[Edit, str]] = {
    "capped scores": (attribute("Attention", softcap=30.0), "Attention caps its scores"),
    "a causal flag": (attribute("Attention", is_causal=1), "or is causal without a mask"),
    "interleaved": (attribute("RotaryEmbedding", interleaved=1), "is interleaved or partial"),
    "partial": (attribute("RotaryEmbedding", rotary_embedding_dim=8), "interleaved or partial"),
    "another axis": (attribute("RMSNormalization", axis=1), "is over axis 1, expected -1"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_that_no_decoder_uses_is_refused(tmp_path: Path, case: str) -> None:
    edit, reason = FORMS[case]
    with pytest.raises(CheckpointError, match=reason) as caught:
        locate(tmp_path, edit, "sdpa_23")
    assert "node 'node_" in str(caught.value)


def test_positions_that_the_graph_counts_become_an_input(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        counted(model, offset=0)

    locate(tmp_path, edit)
    source = read_source(tmp_path / "model.onnx", tokens=WINDOW)
    assert source.signature.positions is None


def test_positions_that_are_counted_otherwise_are_refused(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        counted(model, offset=1)

    reason = r"it takes no positions, and node .* reads positions \[1, 2, 3"
    with pytest.raises(CheckpointError, match=reason):
        locate(tmp_path, edit)


def counted(model: onnx.ModelProto, *, offset: int) -> None:
    """position_ids is no input: it is offset + past + [0 .. T - 1]."""
    graph = model.graph
    name, past = graph.input[2].name, graph.input[3].name
    del graph.input[2]
    for key, value in (("zero", 0), ("one", 1), ("offset", offset)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), key))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "axis"))
    make = onnx.helper.make_node
    nodes = [
        make("Shape", [graph.input[0].name], ["t1"], start=1, end=2),
        make("Squeeze", ["t1"], ["t0"]),
        make("Range", ["zero", "t0", "one"], ["steps"]),
        make("Shape", [past], ["p1"], start=2, end=3),
        make("Add", ["steps", "p1"], ["counted"]),
        make("Add", ["counted", "offset"], ["shifted"]),
        make("Unsqueeze", ["shifted", "axis"], [name]),
    ]
    for at, node in enumerate(nodes):
        graph.node.insert(at, node)


def test_the_file_is_named_or_the_only_one_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.onnx file"):
        onnx_file(".", tmp_path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        onnx_file("model.onnx", tmp_path)
    for name in ("b.onnx", "a.onnx", "weights.bin"):
        (tmp_path / name).touch()
        if name == "b.onnx":
            assert onnx_file(".", tmp_path) == tmp_path / "b.onnx"
    assert onnx_file("a.onnx", tmp_path) == tmp_path / "a.onnx"
    with pytest.raises(CheckpointError, match=r"the folder holds a.onnx, b.onnx"):
        onnx_file(".", tmp_path)
    with pytest.raises(CheckpointError, match=r"weights.bin is no \.onnx file"):
        onnx_file("weights.bin", tmp_path)


def test_the_digest_is_over_every_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(exported("eager_18"), path, save_as_external_data=True, location="model.data")
    digest = locate_onnx(path, window=WINDOW).digest
    assert locate_onnx(path, window=WINDOW).digest == digest
    data = bytearray((tmp_path / "model.data").read_bytes())
    data[1000] ^= 1
    (tmp_path / "model.data").write_bytes(data)
    assert locate_onnx(path, window=WINDOW).digest != digest
    assert locate_onnx(path, window=WINDOW, is_hashed=False).digest == ""


def test_a_tied_head_reads_the_embedding_and_is_stored_once(tmp_path: Path) -> None:
    """A head that is a Transpose of the embedding's own tensor."""

    def edit(model: onnx.ModelProto) -> None:
        logits = model.graph.output[0].name
        head = next(node for node in model.graph.node if logits in node.output)
        gather = node_of(model, "Gather")
        turn = onnx.helper.make_node("Transpose", [gather.input[0]], ["turned"], perm=[1, 0])
        model.graph.node.insert(0, turn)
        head.input[1] = "turned"

    model = exported("eager_18")
    edit(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    checkpoint = locate_onnx(path, window=WINDOW)
    assert "lm_head.weight" not in checkpoint.tensors

    from compiler.stages.import_onnx import import_onnx

    program = import_onnx(path, checkpoint, window=WINDOW, context=None).programs["prefill"]
    assert program.weights["lm_head.weight"].key == "transpose(model.embed_tokens.weight)"
    head = next(node for node in program.graph.nodes if node.name == "lm_head/MatMul")
    assert head.inputs[1].name == "lm_head.weight"
    assert tuple(head.inputs[1].shape) == (64, 80)
