"""The rounding of new rows and the writes into both of their caches become one node, for a kernel.

    codes, scales = QuantizedRows(rows)
    present       = CacheUpdate(past, codes, past_length, valid_length)
    present_scale = CacheUpdate(past_scale, scales, past_length, valid_length)

 -> present, present_scale
    = QuantizedCacheUpdate(past, past_scale, rows, past_length, valid_length)

A converter sees one node at a time, so this is done on the graph, before TVM's importer reads it.
What is written otherwise is left as it is, and is lowered node by node.
"""

import onnx_graphsurgeon as gs

from compiler.contracts.program import FUSED_DOMAIN, Program, tidy

QUANTIZED_CACHE_UPDATE = "QuantizedCacheUpdate"


def join_cache_writes(program: Program) -> Program:
    """A copy with one node for each quantized write; the program itself where there is none."""
    if not any(_writes(node) for node in program.graph.nodes):
        return program
    joined = program.copy()
    for rounding in list(joined.graph.nodes):
        writes = _writes(rounding)
        if writes is None:
            continue
        codes, scales = writes
        caches, lengths = [codes.inputs[0], scales.inputs[0]], codes.inputs[2:]
        outputs = [codes.outputs[0], scales.outputs[0]]
        for write in writes:
            write.outputs.clear()
        joined.graph.nodes.append(
            gs.Node(
                QUANTIZED_CACHE_UPDATE,
                codes.name,
                inputs=[*caches, rounding.inputs[0], *lengths],
                outputs=outputs,
                domain=FUSED_DOMAIN,
            )
        )
    tidy(joined.graph)
    return joined


def _writes(rounding: gs.Node) -> tuple[gs.Node, gs.Node] | None:
    """The two CacheUpdates that alone read what a QuantizedRows gives."""
    if rounding.op != "QuantizedRows":
        return None
    readers = [list(tensor.outputs) for tensor in rounding.outputs]
    if [[node.op for node in nodes] for nodes in readers] != [["CacheUpdate"], ["CacheUpdate"]]:
        return None
    codes, scales = (nodes[0] for nodes in readers)
    is_same_place = all(
        one is other for one, other in zip(codes.inputs[2:], scales.inputs[2:], strict=True)
    )
    return (codes, scales) if is_same_place else None
