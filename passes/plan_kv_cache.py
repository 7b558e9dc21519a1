"""Growing caches become static ones that a target updates in place.

    present[1, H, past + T, d] = Concat(past_key_values[1, H, past, d], new[1, H, T, d])
 -> present[C, H, d]
    = CacheUpdate(past_key_values[C, H, d], rows[T, H, d], past_length, valid_length)

The written axis comes first, so that a row is contiguous. Only the valid rows are written. The key
axis of the mask has the length C from here on. A layer with a sliding window has C rows like the
others: what lies before its window is masked, not dropped. Declines a cache that is not a Concat on
its sequence axis. The value is the same; sums over C columns instead of past + T add zeros in
another order.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._match import add_node, produced_by, replace_uses

SEQUENCE_AXIS = 2
CACHE_UPDATE = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    CacheUpdate <context> (cache, rows, past_length, valid_length) => (updated)
    {{
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        row_axes = Constant <value_ints: ints = [1, 2]> ()
        count = Constant <value_int: int = @context> ()
        slots = Range (zero, count, one)
        wanted = Sub (slots, past_length)
        is_new = GreaterOrEqual (wanted, zero)
        is_valid = Less (wanted, valid_length)
        written_1d = And (is_new, is_valid)
        index = Where (written_1d, wanted, zero)
        picked = Gather <axis: int = 0> (rows, index)
        written = Unsqueeze (written_1d, row_axes)
        updated = Where (written, picked, cache)
    }}
    """
)


@dataclass(frozen=True)
class _Append:
    """One cache: past -> Concat(past, new) -> present."""

    past: gs.Tensor
    new: gs.Tensor
    node: gs.Node


def _match_append(past: gs.Tensor, program: Program) -> _Append | str:
    readers = [node for node in past.outputs if node.op != "Shape"]
    if len(readers) != 1 or readers[0].op != "Concat":
        return f"it is read by {[node.name for node in readers]}, expected one Concat"
    node = readers[0]
    if node.attrs.get("axis") not in (SEQUENCE_AXIS, SEQUENCE_AXIS - 4):
        return f"{node.name} joins on axis {node.attrs.get('axis')}, expected {SEQUENCE_AXIS}"
    if len(node.inputs) != 2 or node.inputs[0] is not past:
        return f"{node.name} does not append to it"
    if not any(node.outputs[0] is output for output in program.graph.outputs):
        return f"{node.name} is no output of the graph"
    return _Append(past, node.inputs[1], node)


def _rows(graph: gs.Graph, append: _Append, shape: list[int]) -> gs.Tensor:
    """new[1, H, T, d] as rows [T, H, d]; a Transpose that made it is undone instead of repeated."""
    name = f"{append.node.name}/rows"
    made = produced_by(append.new, "Transpose")
    by_token = (
        made.inputs[0]
        if made is not None and made.attrs.get("perm") == [0, 2, 1, 3]
        else add_node(
            graph, "Transpose", f"{name}/Transpose", [append.new], attrs={"perm": [0, 2, 1, 3]}
        )
    )
    return add_node(graph, "Reshape", name, [by_token, np.array(shape, np.int64)])


def plan_kv_cache(program: Program) -> PassReport:
    """Make every cache static, or none."""
    graph, tokens, context = program.graph, program.tokens, program.context
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    if "past_length" not in inputs:
        return PassReport(
            skips=(Skip("graph", "there is no past_length input: fold-mask declined"),)
        )
    caches = [t for n, t in inputs.items() if n.startswith("past_key_values.")]
    if all(len(cache.shape) == 3 for cache in caches):
        return PassReport(skips=(Skip("past_key_values", "the caches are static already"),))
    matches = [_match_append(cache, program) for cache in caches]
    skips = [
        Skip(cache.name, reason)
        for cache, reason in zip(caches, matches, strict=True)
        if isinstance(reason, str)
    ]
    if skips:
        return PassReport(skips=tuple(skips))

    for append in (match for match in matches if isinstance(match, _Append)):
        _, heads, _, head_dim = append.past.shape
        past, present = append.past, append.node.outputs[0]
        for node in [node for node in past.outputs if node.op == "Shape"]:
            _make_static(node, [1, heads, context - tokens, head_dim], graph)
        past.shape = [context, heads, head_dim]
        rows = _rows(graph, append, [tokens, heads, head_dim])
        name, readers = append.node.name, list(present.outputs)
        append.node.outputs.clear()
        updated = add_node(
            graph,
            "CacheUpdate",
            f"{name}/CacheUpdate",
            [past, rows, inputs["past_length"], inputs["valid_length"]],
            attrs={"context": context},
            is_fused=True,
            output=present,
        )
        present.shape = [context, heads, head_dim]
        batched = add_node(
            graph, "Unsqueeze", f"{name}/Unsqueeze", [updated, np.array([0], np.int64)]
        )
        by_head = add_node(
            graph, "Transpose", f"{name}/Transpose", [batched], attrs={"perm": [0, 2, 1, 3]}
        )
        replace_uses(graph, present, by_head, readers=readers)
        program.aliases[present.name] = past.name
    program.functions[CACHE_UPDATE.name] = CACHE_UPDATE
    tidy(graph)
    return PassReport(tuple(m.node.name for m in matches if isinstance(m, _Append)))


def _make_static(shape_node: gs.Node, full: list[int], graph: gs.Graph) -> None:
    """Replace Shape(past), whose past axis is now C - T."""
    start = int(shape_node.attrs.get("start", 0))
    end = int(shape_node.attrs.get("end", len(full)))
    value = np.array(full[start:end], np.int64)
    replace_uses(graph, shape_node.outputs[0], gs.Constant(f"{shape_node.name}.static", value))


@dataclass(frozen=True)
class PlanKVCache(Pass):
    """Static caches of C rows, written in place; the past axis leaves the signature."""

    name: ClassVar = "plan-kv-cache"
    requires: ClassVar = ("fold-mask",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-5)
    changes_signature: ClassVar = True

    def run(self, program: Program) -> PassReport:
        """Plan all layers' caches; decline a layer whose cache is appended to otherwise."""
        return plan_kv_cache(program)

    def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """[1, H, past, d] -> [C, H, d], the rest zero."""
        adapted = dict(old)
        for name in (name for name in old if name.startswith("past_key_values.")):
            _, heads, past, head_dim = old[name].shape
            cache = np.zeros((program.context, heads, head_dim), old[name].dtype)
            cache[:past] = old[name][0].transpose(1, 0, 2)
            adapted[name] = cache
        return adapted

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        """[1, H, past + T, d] -> [C, H, d]: rows of padding are not kept, the rest is zero."""
        filled = int(old_inputs["past_length"][0] + old_inputs["valid_length"][0])
        adapted = dict(old)
        for name in (name for name in old if name.startswith("present.")):
            _, heads, _, head_dim = old[name].shape
            cache = np.zeros((program.context, heads, head_dim), old[name].dtype)
            cache[:filled] = old[name][0, :, :filled].transpose(1, 0, 2)
            adapted[name] = cache
        return adapted
