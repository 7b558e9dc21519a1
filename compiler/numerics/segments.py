"""A program run in pieces that end at its taps, so that a tap can be seen and replaced in between.

    embed | norm1 | q, k, v | q_rot, k_rot | keys, values | attn | o | resid1 | ... | logits

A tap's segment is the one after the deepest tap that it is computed from, and never before that of
an earlier tap; a node runs in the segment that first needs it. So taps come in order, what replaces
one reaches all that follows, and memory holds the activations of one layer: a tensor is freed
behind its last reader. Nothing is optimised, so the pieces compute what the whole does, bit by bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from compiler.contracts.program import Program
from compiler.contracts.taps import Observer, Tap
from compiler.numerics.graph_piece import graph_piece, tensor_types
from compiler.numerics.program_taps import program_taps
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.tap_place import TapPlace

if TYPE_CHECKING:
    from onnxruntime import OrtValue


@dataclass(frozen=True)
class _Segment:
    """One piece.

    Attributes:
        session: Its nodes; None where it has none.
        taps: What is shown once it has run.
        dropped: Tensors that no later segment reads.
    """

    session: ReferenceSession | None
    taps: Mapping[Tap, TapPlace]
    dropped: Sequence[str]


class SegmentedRun:
    """One program, ready to run under an observer.

    Args:
        program: At any point of the pipeline.

    Raises:
        PassError: onnxruntime refuses the graph.
    """

    def __init__(self, program: Program) -> None:
        taps = program_taps(program)
        model = program.model()
        plan = _Plan(model.graph, taps)
        types = tensor_types(model)
        self.outputs = tuple(output.name for output in model.graph.output)
        self._dtypes = {
            name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for name, value in types.items()
        }
        self._segments = [
            _Segment(
                session=ReferenceSession(
                    graph_piece(model, plan.nodes[index], plan.made[index], types)
                )
                if plan.made[index]
                else None,
                taps={tap: taps[tap] for tap in plan.shown[index]},
                dropped=plan.dropped[index],
            )
            for index in range(len(plan.nodes))
        ]

    def run(
        self,
        feeds: "Mapping[str, np.ndarray | OrtValue]",
        observer: Observer,
        *,
        past: int,
        valid: int,
    ) -> dict[str, np.ndarray]:
        """The outputs by name, as what the observer put in place leaves them.

        Args:
            feeds: All that the program takes.
            observer: Shown the taps at its points, in order.
            past: Positions that the cache holds before.
            valid: Real tokens of the call; rows of padding are neither shown nor replaced.
        """
        tensors: dict[str, np.ndarray] = {}
        for segment in self._segments:
            if segment.session is not None:
                made = segment.session.run({**feeds, **tensors})
                # bfloat16 comes out in float32, and goes in as what it is.
                tensors |= {n: a.astype(self._dtypes[n], copy=False) for n, a in made.items()}
            for tap, place in segment.taps.items():
                if tap.point not in observer.points:
                    continue
                array = tensors[place.tensor]
                rows = place.rows(array, past=past, valid=valid)
                instead = observer.see(tap, rows)
                if instead is None:
                    continue
                assert instead.shape == rows.shape, f"{tap}: {instead.shape}, not {rows.shape}"
                tensors[place.tensor] = place.with_rows(array, instead, past=past, valid=valid)
            for name in segment.dropped:
                del tensors[name]
        return {name: tensors[name] for name in self.outputs}


class _Plan:
    """Which segment runs what.

    Attributes:
        nodes: Of each segment, in the graph's order.
        shown: Taps of each segment.
        made: Tensors of each segment that another reads, that are shown, or that are outputs.
        dropped: Tensors that no segment behind this one reads, and that are no outputs.
    """

    def __init__(self, graph: onnx.GraphProto, taps: Mapping[Tap, TapPlace]) -> None:
        ends = _ends(graph, taps)
        latest = max(ends.values(), default=0)
        segments = range(latest + 1)
        outputs = {output.name for output in graph.output}
        # The first and the last segment that needs a tensor.
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for tap, place in taps.items():
            first.setdefault(place.tensor, ends[tap])
            last[place.tensor] = ends[tap]
        made: dict[str, int] = {}
        self.nodes: list[list[onnx.NodeProto]] = [[] for _ in segments]
        for node in reversed(graph.node):
            index = min(first.get(name, latest) for name in node.output)
            self.nodes[index].insert(0, node)
            made |= dict.fromkeys(node.output, index)
            for name in node.input:
                first[name] = min(first.get(name, latest), index)
                last[name] = max(last.get(name, 0), index)
        shown = {place.tensor for place in taps.values()}
        kept = [n for n in made if n in outputs | shown or last.get(n, 0) > made[n]]
        self.shown = [[tap for tap in taps if ends[tap] == index] for index in segments]
        self.made = [[name for name in kept if made[name] == index] for index in segments]
        self.dropped = [
            [name for name in kept if name not in outputs and last[name] == index]
            for index in segments
        ]


def _ends(graph: onnx.GraphProto, taps: Mapping[Tap, TapPlace]) -> dict[Tap, int]:
    """The segment behind which each tap is shown."""
    order = list(taps)
    tap_on = {place.tensor: index for index, place in enumerate(taps.values())}
    # The last tap, in order, that a tensor is computed from; and that its readers are.
    above: dict[str, int] = {}
    behind: dict[str, int] = {}
    for node in graph.node:
        found = max((behind.get(name, -1) for name in node.input), default=-1)
        above |= dict.fromkeys(node.output, found)
        behind |= {name: max(found, tap_on.get(name, -1)) for name in node.output}
    ends: dict[Tap, int] = {}
    end = 0
    for index, (tap, place) in enumerate(taps.items()):
        deepest = above[place.tensor]
        assert deepest < index, f"{tap} is computed from {order[deepest]}, which comes later"
        if deepest >= 0:
            end = max(end, ends[order[deepest]] + 1)
        ends[tap] = end
    return ends
