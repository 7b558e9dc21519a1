"""Small Qwen models as graphs, written without torch: what a pass is tried on.

    options = draw_options(seed, phases=("prefill", "decode"))
    program = block_program(options)

The graph has the signature and the node names of the compiler's own trace: token ids, mask and
positions in, logits and growing caches out, parameters under their Hugging Face names.
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.program import Program, tidy
from compiler.pass_kit.block_options import BlockOptions, Projection
from compiler.pass_kit.node_writer import NodeWriter

INT64_MAX = np.iinfo(np.int64).max
_ROPE_THETA = 10000.0
_BY_HEAD: dict[str, object] = {"perm": [0, 2, 1, 3]}


@dataclass(frozen=True)
class _Frame:
    """What every layer reads: the rotary's tables and the mask."""

    cos: gs.Tensor
    sin: gs.Tensor
    mask: gs.Tensor


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
    frame = _Frame(cos, sin, _mask(write, mask, caches[0][0], tokens))
    for layer, (keys, values) in enumerate(caches):
        path = f"model.layers.{layer}"
        normed = _norm(write, f"{path}.input_layernorm", hidden, options.hidden, options)
        attended = _attention(write, layer, normed, frame, (keys, values), options)
        hidden = write.commutative("Add", path, hidden, attended)
        normed = _norm(write, f"{path}.post_attention_layernorm", hidden, options.hidden, options)
        hidden = write.commutative("Add", path, hidden, _mlp(write, f"{path}.mlp", normed, options))
    hidden = _norm(write, "model.norm", hidden, options.hidden, options)
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
    frequencies = (1 / _ROPE_THETA**exponents).astype(np.float32)
    column = write.node("Unsqueeze", path, positions, np.array([2], np.int64))
    numbers = write.node("Cast", path, column, attrs={"to": 1})
    half = write.commutative("Mul", path, numbers, frequencies)
    angles = write.node("Concat", path, half, half, attrs={"axis": -1})
    head_axis = np.array([1], np.int64)
    cos = write.node("Unsqueeze", path, write.node("Cos", path, angles), head_axis)
    sin = write.node("Unsqueeze", path, write.node("Sin", path, angles), head_axis)
    return cos, sin


def _mask(write: NodeWriter, mask: gs.Tensor, cache: gs.Tensor, tokens: int) -> gs.Tensor:
    """0 where row i may see column j, the lowest float elsewhere; [T, past + T]."""
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
    allowed = write.commutative("And", "model", causal, real)
    opened, blocked = np.array(0, np.float32), np.array(np.finfo(np.float32).min, np.float32)
    return write.node("Where", "model", allowed, opened, blocked)


def _norm(
    write: NodeWriter, path: str, x: gs.Tensor, width: int, options: BlockOptions
) -> gs.Variable:
    """An RMS norm: x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
    if options.squares == "Pow":
        squares = write.node("Pow", path, x, np.array(2, np.float32))
    else:
        squares = write.node("Mul", path, x, x)
    axes = write.integers(path, -1)
    mean = write.node("ReduceMean", path, squares, axes, attrs={"keepdims": 1})
    shifted = write.commutative("Add", path, mean, np.array(options.epsilon, np.float32))
    root = write.node("Sqrt", path, shifted)
    if options.inverse == "Reciprocal":
        inverse = write.node("Reciprocal", path, root)
    else:
        inverse = write.node("Div", path, np.array(1, np.float32), root)
    scaled = write.commutative("Mul", path, x, inverse)
    return write.commutative("Mul", path, write.parameter(f"{path}.weight", (width,)), scaled)


def _linear(
    write: NodeWriter,
    path: str,
    x: gs.Tensor,
    sizes: tuple[int, int],
    options: BlockOptions,
    *,
    projection: Projection,
) -> gs.Variable:
    """A linear, x W + b; an int8 weight goes through DequantizeLinear, a scale for each output."""
    outputs, inputs = sizes
    if projection in options.quantized:
        stored = write.matrix(f"{path}.weight", outputs, inputs, dtype="int8")
        scale = write.parameter(f"{path}.weight_scale", (outputs,))
        weight = write.node("DequantizeLinear", path, stored, scale, attrs={"axis": 1})
    else:
        weight = write.matrix(f"{path}.weight", outputs, inputs)
    product = write.node("MatMul", path, x, weight)
    if projection not in options.biases:
        return product
    return write.commutative("Add", path, product, write.parameter(f"{path}.bias", (outputs,)))


def _heads(
    write: NodeWriter, path: str, x: gs.Tensor, heads: int, options: BlockOptions
) -> gs.Variable:
    """[1, T, heads * d] -> [1, T, heads, d]."""
    shape = write.integers(path, 1, options.window, heads, options.head_dim)
    return write.node("Reshape", path, x, shape, attrs={"allowzero": 1})


def _rotated(write: NodeWriter, path: str, x: gs.Tensor, frame: _Frame, half: int) -> gs.Variable:
    """The pairs (i, i + d/2) of each head turned by their angle."""
    straight = write.commutative("Mul", path, x, frame.cos)

    def part(start: int, stop: int) -> gs.Variable:
        bounds = [write.integers(path, value) for value in (start, stop, 3)]
        return write.node("Slice", path, x, *bounds, np.array([1], np.int64))

    upper, lower = part(half, INT64_MAX), part(0, half)
    turned = write.node("Concat", path, write.node("Neg", path, upper), lower, attrs={"axis": -1})
    crossed = write.commutative("Mul", path, turned, frame.sin)
    return write.commutative("Add", path, straight, crossed)


def _attention(
    write: NodeWriter,
    layer: int,
    x: gs.Tensor,
    frame: _Frame,
    past: tuple[gs.Tensor, ...],
    options: BlockOptions,
) -> gs.Variable:
    """Causal grouped-query attention over past and new keys."""
    path = f"model.layers.{layer}.self_attn"
    tokens, head_dim, hidden = options.window, options.head_dim, options.hidden
    heads: dict[Projection, int] = {"q": options.heads, "k": options.kv_heads}
    made: list[gs.Variable] = []
    for projection in ("q", "k", "v"):
        count = heads.get(projection, options.kv_heads)
        module = f"{path}.{projection}_proj"
        sizes = (count * head_dim, hidden)
        linear = _linear(write, module, x, sizes, options, projection=projection)
        split = _heads(write, path, linear, count, options)
        if options.has_qk_norm and projection != "v":
            split = _norm(write, f"{path}.{projection}_norm", split, head_dim, options)
        made.append(write.node("Transpose", path, split, attrs=_BY_HEAD))
    q, k, v = made
    q, k = (_rotated(write, path, one, frame, head_dim // 2) for one in (q, k))
    keys, values = (
        _appended(write, path, old, new, f"present.{layer}.{part}", options)
        for old, new, part in ((past[0], k, "key"), (past[1], v, "value"))
    )
    grouped = write.integers(path, 1, options.kv_heads, options.group, tokens, head_dim)
    q = write.node("Reshape", path, q, grouped, attrs={"allowzero": 1})
    group_axis = np.array([2], np.int64)
    keys = write.node("Unsqueeze", path, keys, group_axis)
    keys = write.node("Transpose", path, keys, attrs={"perm": [0, 1, 2, 4, 3]})
    products = write.node("MatMul", path, q, keys)
    scores = write.commutative("Mul", path, products, np.array(head_dim**-0.5, np.float32))
    masked = write.commutative("Add", path, scores, frame.mask)
    shares = write.node("Softmax", path, masked, attrs={"axis": -1})
    context = write.node("MatMul", path, shares, write.node("Unsqueeze", path, values, group_axis))
    by_head = write.integers(path, 1, options.heads, tokens, head_dim)
    context = write.node("Reshape", path, context, by_head, attrs={"allowzero": 1})
    context = write.node("Transpose", path, context, attrs=_BY_HEAD)
    merged = write.integers(path, 1, tokens, options.heads * head_dim)
    context = write.node("Reshape", path, context, merged, attrs={"allowzero": 1})
    sizes = (hidden, options.heads * head_dim)
    return _linear(write, f"{path}.o_proj", context, sizes, options, projection="o")


def _appended(
    write: NodeWriter, path: str, old: gs.Tensor, new: gs.Tensor, name: str, options: BlockOptions
) -> gs.Variable:
    shape = (1, options.kv_heads, f"past + {options.window}", options.head_dim)
    output = write.output(name, shape)
    return write.node("Concat", path, old, new, attrs={"axis": 2}, output=output)


def _mlp(write: NodeWriter, path: str, x: gs.Tensor, options: BlockOptions) -> gs.Variable:
    """down(silu(gate(x)) * up(x))."""
    wide, narrow = (options.intermediate, options.hidden), (options.hidden, options.intermediate)
    gate = _linear(write, f"{path}.gate_proj", x, wide, options, projection="gate")
    up = _linear(write, f"{path}.up_proj", x, wide, options, projection="up")
    silu = write.commutative("Mul", path, gate, write.node("Sigmoid", path, gate))
    both = write.commutative("Mul", path, silu, up)
    return _linear(write, f"{path}.down_proj", both, narrow, options, projection="down")
