"""KV caches are stored in 16 bits, or in int8 with one scale for each head of a token.

    present = CacheUpdate(past, rows, ..)

 -> present = CacheUpdate(past, Cast(rows), ..)                          bfloat16, float16
    what read present reads Cast(present)

 -> codes, scales = QuantizedRows(rows[T, K, d])                         int8
    present       = CacheUpdate(past, codes[T, K, d], ..)
    present_scale = CacheUpdate(past_scale, scales[T, K, 1], ..)
    what read present reads WidenedCache(present, present_scale)

A scale is absmax / 127 of its d entries, or 1 where that is subnormal; an entry is rounded to
nearest, ties to even, and -128 is not used. Attention reads back what was rounded, the rows of the
same call too, so that a prompt gives the same in one window and in several. It stands after
whatever may change a float's last bit, which would tip a code over; what follows is exact. Declines
a cache that is stored narrowly already, or is no input and output of the graph; then none changes.

Numerically a row moves by half a code, or by the unit roundoff of 16 bits, and what follows from it
by some of these; where nothing is rounded, as in float64, the graphs are equal, and the adapters
round nothing there either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.int8_scales import largest_code, quantized_rows
from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, TensorSpec, tidy
from compiler.contracts.weights import DTYPES
from passes._match import add_node, module_of, replace_uses

CacheDtype = Literal["int8", "bfloat16", "float16", "float32"]

_LARGEST_CODE = largest_code(8)
_SMALLEST_SCALE = np.finfo(np.float32).tiny
QUANTIZED_ROWS = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    QuantizedRows (x) => (codes, scales)
    {{
        last = Constant <value_ints: ints = [-1]> ()
        largest_code = Constant <value_float: float = {_LARGEST_CODE}.0> ()
        smallest = Constant <value_float: float = {_SMALLEST_SCALE}> ()
        one = Constant <value_float: float = 1.0> ()
        zero = Constant <value: tensor = int8 {{0}}> ()
        sizes = Abs (x)
        absmax = ReduceMax <keepdims: int = 1> (sizes, last)
        quotients = Div (absmax, largest_code)
        is_small = Less (quotients, smallest)
        scales = Where (is_small, one, quotients)
        entries = Div (x, scales)
        codes = QuantizeLinear (entries, one, zero)
    }}
    """
)
WIDENED_CACHE = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    WidenedCache (codes, scales) => (wide)
    {{
        entries = Cast <to: int = {int(onnx.TensorProto.FLOAT)}> (codes)
        wide = Mul (entries, scales)
    }}
    """
)
_ONNX = {
    "float16": int(onnx.TensorProto.FLOAT16),
    "bfloat16": int(onnx.TensorProto.BFLOAT16),
}


def _problem(update: gs.Node, program: Program) -> str | None:
    """Why a CacheUpdate's cache cannot be stored otherwise; None when it can."""
    past, present = update.inputs[0], update.outputs[0]
    if program.aliases.get(present.name) != past.name:
        return "it updates no cache of the graph"
    dtype = next(spec.dtype for spec in program.inputs() if spec.name == past.name)
    return None if dtype == "float32" else f"its cache is {dtype} already"


def _store_narrow(program: Program, update: gs.Node, dtype: CacheDtype) -> gs.Tensor:
    """Casts around a cache of 16 bits; what reads as float32."""
    graph, stem = program.graph, module_of(update)
    past, rows = update.inputs[:2]
    present = update.outputs[0]
    past.dtype = present.dtype = np.dtype(np.float16) if dtype == "float16" else _ONNX[dtype]
    attrs: dict[str, object] = {"to": _ONNX[dtype]}
    update.inputs[1] = add_node(graph, "Cast", f"{stem}/narrowed/Cast", [rows], attrs=attrs)
    wide: dict[str, object] = {"to": int(onnx.TensorProto.FLOAT)}
    return add_node(graph, "Cast", f"{stem}/widened/Cast", [present], attrs=wide)


def _store_int8(program: Program, update: gs.Node) -> gs.Tensor:
    """Codes in the cache's place, and a cache of scales beside it; what reads as float32."""
    graph, stem = program.graph, module_of(update)
    past, rows, *lengths = update.inputs
    present = update.outputs[0]
    past.dtype = present.dtype = np.dtype(np.int8)
    name = f"{stem}/QuantizedRows"
    codes, scales = gs.Variable(name), gs.Variable(f"{name}/scales")
    node = gs.Node("QuantizedRows", name, inputs=[rows], outputs=[codes, scales])
    node.domain = FUSED_DOMAIN
    graph.nodes.append(node)
    update.inputs[1] = codes
    past_scale, present_scale = (
        gs.Variable(f"{tensor.name}_scale", np.dtype(np.float32), [*tensor.shape[:-1], 1])
        for tensor in (past, present)
    )
    _put_behind(graph.inputs, past, past_scale)
    _put_behind(graph.outputs, present, present_scale)
    add_node(
        graph,
        "CacheUpdate",
        f"{stem}/scales/CacheUpdate",
        [past_scale, scales, *lengths],
        attrs=dict(update.attrs),
        is_fused=True,
        output=present_scale,
    )
    program.aliases[present_scale.name] = past_scale.name
    return add_node(
        graph, "WidenedCache", f"{stem}/WidenedCache", [present, present_scale], is_fused=True
    )


def _put_behind(tensors: list[gs.Tensor], one: gs.Tensor, new: gs.Tensor) -> None:
    """Insert `new` behind `one`; graphsurgeon's `==` compares names alone."""
    index = next(index for index, tensor in enumerate(tensors) if tensor is one)
    tensors.insert(index + 1, new)


def store_kv_cache(program: Program, dtype: CacheDtype) -> PassReport:
    """Store every cache in `dtype`, or none."""
    if dtype == "float32":
        return PassReport()
    updates = [node for node in program.graph.nodes if node.op == "CacheUpdate"]
    if not updates:
        reason = "there is no CacheUpdate: plan-kv-cache declined"
        return PassReport(skips=(Skip("graph", reason),))
    problems = [(node.name, _problem(node, program)) for node in updates]
    skips = tuple(Skip(name, problem) for name, problem in problems if problem is not None)
    if skips:
        return PassReport(skips=skips)
    for update in updates:
        present = update.outputs[0]
        readers = list(present.outputs)
        is_int8 = dtype == "int8"
        wide = _store_int8(program, update) if is_int8 else _store_narrow(program, update, dtype)
        replace_uses(program.graph, present, wide, readers=readers)
    if dtype == "int8":
        functions = (QUANTIZED_ROWS, WIDENED_CACHE)
        program.functions.update((function.name, function) for function in functions)
    tidy(program.graph)
    return PassReport(tuple(node.name for node in updates))


def _stored(
    old: Arrays, specs: Sequence[TensorSpec], dtype: CacheDtype, *, is_given: bool
) -> dict[str, np.ndarray]:
    """Float caches as the graph after the pass takes them, or gives them."""
    adapted = dict(old)
    for spec in specs:
        value = old.get(spec.name)
        if value is None or len(spec.shape) != 3 or spec.dtype != dtype:
            continue
        if dtype == "int8" and value.dtype.kind == "f":
            adapted[spec.name], adapted[f"{spec.name}_scale"] = quantized_rows(value)
        elif value.dtype == np.float32:
            narrow = value.astype(DTYPES[dtype])
            # The reference gives bfloat16, which numpy lacks, in float32.
            is_wide = dtype == "bfloat16" and not is_given
            adapted[spec.name] = narrow.astype(np.float32) if is_wide else narrow
    return adapted


@dataclass(frozen=True)
class StoreKVCache(Pass):
    """Keys and values are kept in `dtype`, and widened where attention reads them."""

    name: ClassVar = "store-kv-cache"
    requires: ClassVar = ("plan-kv-cache",)
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-attention",
        "fuse-gate-up",
        "fuse-qkv",
        "fuse-rms-norm",
        "fuse-rotary",
        "fuse-silu-mul",
        "group-queries",
        "pad-vocabulary",
        "place-scale",
        "widen-angles",
        "cast-dtype",
        "annotate-int8-qdq",
    )
    changes_signature: ClassVar = True
    dtype: CacheDtype

    def promise(self) -> Contract:
        """A number of roundings of `dtype`, and nothing else."""
        if self.dtype == "float32":
            return Contract.exact()
        return Contract.roundings(self.dtype)

    def run(self, program: Program) -> PassReport:
        """Store the caches of all layers; decline where one is no float32 cache of the graph."""
        return store_kv_cache(program, self.dtype)

    def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """Float caches as codes and scales, or in 16 bits."""
        return _stored(old, program.inputs(), self.dtype, is_given=True)

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        """The same of the caches that the graph gives."""
        del old_inputs
        return _stored(old, program.outputs(), self.dtype, is_given=False)
