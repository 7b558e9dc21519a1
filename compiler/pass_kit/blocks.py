"""Small Qwen models as graphs, written without torch: what a pass is tried on.

    options = draw_options(seed, phases=("prefill", "decode"))
    program = block_program(options)

The graph has the signature and the node names of the compiler's own trace: token ids, mask and
positions in, logits and growing caches out, parameters under their Hugging Face names.
"""

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.program import Program, tidy
from compiler.pass_kit.attention_writer import Frame, attention, masked
from compiler.pass_kit.block_options import BlockOptions
from compiler.pass_kit.linear_writer import linear, norm
from compiler.pass_kit.node_writer import NodeWriter


def block_program(options: BlockOptions) -> Program:
    """The model that `options` describe, as traced."""
    write = NodeWriter(options)
    tokens, past = options.window, f"past + {options.window}"
    ids = write.input("input_ids", np.int64, (1, tokens))
    mask = write.input("attention_mask", np.int64, (1, past))
    positions = write.input("position_ids", np.int64, (1, tokens))
    shape = (1, options.kv_heads, "past", options.head_dim)
    caches = [
        tuple(
            write.input(f"past_key_values.{layer}.{part}", np.float32, shape)
            for part in ("key", "value")
        )
        for layer in range(options.layers)
    ]
    logits = write.output("logits", (1, tokens, options.vocabulary))

    embedding = write.parameter("model.embed_tokens.weight", (options.vocabulary, options.hidden))
    hidden = write.node("Gather", "model.embed_tokens", embedding, ids, attrs={"axis": 0})
    cos, sin = _rotary_tables(write, positions, options)
    allowed = _allowed(write, mask, caches[0][0], tokens)
    own = None if options.has_own_masks else masked(write, "model", allowed)
    frame = Frame(ids, cos, sin, allowed, own)
    for layer, (keys, values) in enumerate(caches):
        path = f"model.layers.{layer}"
        normed = norm(write, f"{path}.input_layernorm", hidden, options.hidden, options)
        attended = attention(write, layer, normed, frame, (keys, values), options)
        hidden = write.commutative("Add", path, hidden, attended)
        normed = norm(write, f"{path}.post_attention_layernorm", hidden, options.hidden, options)
        hidden = write.commutative("Add", path, hidden, _mlp(write, f"{path}.mlp", normed, options))
    hidden = norm(write, "model.norm", hidden, options.hidden, options)
    tied = "model.embed_tokens.weight" if options.is_tied else ""
    head = write.matrix("lm_head.weight", options.vocabulary, options.hidden, tensor=tied)
    write.node("MatMul", "lm_head", hidden, head, output=logits)
    return _program(write, options)


def _program(write: NodeWriter, options: BlockOptions) -> Program:
    graph = write.graph
    tensors = graph.tensors()
    graph.inputs += [tensors[name] for name in sorted(write.weights)]
    tidy(graph)
    return Program(
        phase=options.phase,
        graph=graph,
        tokens=options.window,
        context=options.context,
        layers=options.layers,
        weights=write.weights,
        checkpoint_tensors={name: weight.shape for name, weight in write.checkpoint.items()},
    )


def _rotary_tables(
    write: NodeWriter, positions: gs.Tensor, options: BlockOptions
) -> tuple[gs.Tensor, gs.Tensor]:
    """Tables of cosines and sines, each [1, 1, T, head_dim]."""
    path = "model.rotary_emb"
    exponents = np.arange(0, options.head_dim, 2) / options.head_dim
    frequencies = (1 / options.theta**exponents).astype(np.float32)
    column = write.node("Unsqueeze", path, positions, np.array([2], np.int64))
    numbers = write.node("Cast", path, column, attrs={"to": 1})
    half = write.commutative("Mul", path, numbers, frequencies)
    head_axis = np.array([1], np.int64)
    if options.repeats_tables:
        tables = [write.node(op, path, half) for op in ("Cos", "Sin")]
        whole = [write.node("Concat", path, one, one, attrs={"axis": -1}) for one in tables]
    else:
        angles = write.node("Concat", path, half, half, attrs={"axis": -1})
        whole = [write.node(op, path, angles) for op in ("Cos", "Sin")]
    cos, sin = (write.node("Unsqueeze", path, one, head_axis) for one in whole)
    if options.rotary_scale == 1:
        return cos, sin
    scale = np.array(options.rotary_scale, np.float32)
    return write.commutative("Mul", path, cos, scale), write.commutative("Mul", path, sin, scale)


def _allowed(write: NodeWriter, mask: gs.Tensor, cache: gs.Tensor, tokens: int) -> gs.Tensor:
    """Whether row i may see column j, [T, past + T]."""
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    first = np.array([0], np.int64)
    past_axis = write.node("Shape", "", cache, attrs={"start": 2, "end": 3})
    past = write.node("Squeeze", "", past_axis, first)
    length_axis = write.node("Shape", "", mask, attrs={"start": 1, "end": 2})
    length = write.node("Squeeze", "", length_axis, first)
    columns = write.node("Range", "model", zero, length, one)
    offsets = write.node("Range", "model", zero, np.array(tokens, np.int64), one)
    rows = write.commutative(
        "Add", "model", write.node("Unsqueeze", "model", offsets, np.array([1], np.int64)), past
    )
    causal = write.node("LessOrEqual", "model", columns, rows)
    real = write.node("Not", "model", write.node("Equal", "model", mask, zero))
    return write.commutative("And", "model", causal, real)


def _mlp(write: NodeWriter, path: str, x: gs.Tensor, options: BlockOptions) -> gs.Variable:
    """down(silu(gate(x)) * up(x))."""
    wide, narrow = (options.intermediate, options.hidden), (options.hidden, options.intermediate)
    gate = linear(write, f"{path}.gate_proj", x, wide, options, projection="gate")
    up = linear(write, f"{path}.up_proj", x, wide, options, projection="up")
    silu = write.commutative("Mul", path, gate, write.node("Sigmoid", path, gate))
    both = write.commutative("Mul", path, silu, up)
    return linear(write, f"{path}.down_proj", both, narrow, options, projection="down")
