"""Ranks in step on onnxruntime, as one graph, and whether together they are what was sharded.

    rank0/x --+                         rank0/x --+
              +-- Sum -- rank0/total              +-- Concat -- rank0/joined
    rank1/x --+          rank1/total    rank1/x --+             rank1/joined

Every node stands once for each rank, under the rank's name; a collective becomes the one operator
that it means. In float64 nothing is rounded, so that what differs there is no matter of the order
of sums: a bias that is lost, or added on each rank, shows whatever its size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compiler.contracts.errors import CheckFailed, PassError
from compiler.contracts.pass_base import Arrays, Pass
from compiler.contracts.program import FUSED_DOMAIN, Program
from compiler.contracts.tensor_parallel import ALL_GATHER, ALL_REDUCE, COLLECTIVES
from compiler.contracts.weight_values import RowReader
from compiler.numerics.feeds import lengths_of, program_feeds
from compiler.numerics.float64 import RoundingCheck
from compiler.numerics.measured_pass import ParameterValues
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.tolerance import largest_error


@dataclass(frozen=True)
class RankProgram:
    """One rank's program, and the pass that made it of the whole."""

    rewriting: Pass
    program: Program


def of_rank(rank: int, name: str) -> str:
    """A tensor's or node's name in the joined graph."""
    return f"rank{rank}/{name}" if name else ""


def joined_ranks(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """All ranks as one graph, in which what they exchange is computed.

    Raises:
        PassError: The graphs differ, so that no step of one is a step of the others.
    """
    graphs = [model.graph for model in models]
    steps = [[(node.name, node.op_type) for node in graph.node] for graph in graphs]
    if any(one != steps[0] for one in steps):
        raise PassError("the ranks' graphs differ in their nodes", code="ranks-differ")
    joined = onnx.ModelProto()
    joined.CopyFrom(models[0])
    for part in ("node", "input", "output", "initializer", "value_info"):
        del getattr(joined.graph, part)[:]
    kept = [function for function in joined.functions if function.name not in COLLECTIVES]
    del joined.functions[:]
    joined.functions.extend(kept)
    for rank, graph in enumerate(graphs):
        for part in ("input", "output", "initializer"):
            for one in getattr(graph, part):
                getattr(joined.graph, part).add().CopyFrom(one)
                getattr(joined.graph, part)[-1].name = of_rank(rank, one.name)
    for nodes in zip(*(graph.node for graph in graphs), strict=True):
        joined.graph.node.extend(_step(nodes))
    return joined


def _step(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """One node of each rank."""
    found: list[onnx.NodeProto] = []
    given = [of_rank(rank, node.input[0]) for rank, node in enumerate(nodes) if node.input]
    for rank, node in enumerate(nodes):
        name, outputs = of_rank(rank, node.name), [of_rank(rank, one) for one in node.output]
        if node.domain == FUSED_DOMAIN and node.op_type == ALL_REDUCE:
            found.append(onnx.helper.make_node("Sum", given, outputs, name))
        elif node.domain == FUSED_DOMAIN and node.op_type == ALL_GATHER:
            found.append(onnx.helper.make_node("Concat", given, outputs, name, axis=-1))
        else:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = name
            copied.input[:] = [of_rank(rank, one) for one in node.input]
            copied.output[:] = outputs
            found.append(copied)
    return found


def ranks_error(
    whole: Program, ranks: Sequence[RankProgram], read: RowReader, *, vocabulary: int
) -> float:
    """Run the whole and its ranks on the same inputs; the largest absolute difference in float32.

    Args:
        whole: What was sharded.
        ranks: All of them, in order.
        read: Rows of a checkpoint tensor.
        vocabulary: Token ids lie below it.

    Raises:
        CheckFailed: In float64, where nothing is rounded, they differ, too; says where.
        PassError: The ranks' graphs differ, or cannot be run.
    """
    model = whole.model()
    joined = joined_ranks([one.program.model() for one in ranks])
    check = RoundingCheck(model, joined)
    sessions = ReferenceSession(model), ReferenceSession(joined)
    values = ParameterValues(read)
    parameters = values.arrays(whole.weights)
    shares = _by_rank([values.arrays(one.program.weights) for one in ranks])
    errors: list[float] = []
    for lengths in lengths_of(whole):
        inputs = program_feeds(whole, lengths, vocabulary=vocabulary)
        feeds = {**parameters, **inputs}
        split = {
            **shares,
            **_by_rank([one.rewriting.adapt_inputs(inputs, one.program) for one in ranks]),
        }

        def wanted(old: Arrays, given: Arrays = inputs) -> dict[str, np.ndarray]:
            adapted = (one.rewriting.adapt_outputs(old, given, one.program) for one in ranks)
            return _by_rank(list(adapted))

        breach = check.breach(feeds, split, wanted)
        if breach is not None:
            raise CheckFailed(
                f"{len(ranks)} ranks together do not give what the whole gives: {breach.said}",
                code="ranks-differ",
            )
        errors.append(largest_error(wanted(sessions[0].run(feeds)), sessions[1].run(split)))
    return max(errors)


def _by_rank(arrays: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {
        of_rank(rank, name): array for rank, own in enumerate(arrays) for name, array in own.items()
    }
