"""The order of passes: what each declares, as a graph, checked before anything runs.

An edge goes from a pass to one that must stand later: what a pass requires, and what it names in
`after` where that is in the list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from compiler.contracts.errors import CompilerError, PassError, raise_all
from compiler.contracts.pass_base import Pass
from compiler.expectations import Expectation


@dataclass(frozen=True)
class PlannedPass:
    """A pass and the place that asked for it: `model.yaml:9:3`, the default's or target's name.

    Attributes:
        rewrite: The pass.
        place: Who asked for it.
        is_placed: Whether its place in the list was given; else `arrange` finds one.
        expected: How often it must fire in each phase; None where it may fire as it likes.
        stands_for: The pass whose place it took; it counts as that one, too.
        spelled: How the list names it, where that is not `rewrite.name`: `./my_pass.py:MyPass`.
    """

    rewrite: Pass
    place: str
    is_placed: bool = True
    expected: Expectation | None = None
    stands_for: str = ""
    spelled: str = ""

    def is_called(self, name: str) -> bool:
        """Whether it is that pass, or stands for it."""
        return name in (self.rewrite.name, self.stands_for)


def check_order(passes: Sequence[PlannedPass]) -> None:
    """Refuse an order in which a pass lacks what it requires, or stands before what it follows.

    Raises:
        PassError: Every violation, each with the place that asked for the pass; or, where the
            declarations contradict each other, the cycle.
    """
    _refuse_cycle(passes)
    errors: list[CompilerError] = []
    for index, planned in enumerate(passes):
        name, place = planned.rewrite.name, planned.place
        earlier = _names(passes[:index])
        errors += [
            PassError(
                f"pass '{name}' needs '{required}' before it",
                where=place,
                hint=f"put '{required}' above '{name}'",
                code="pass-order",
            )
            for required in planned.rewrite.required()
            if required not in earlier
        ]
        errors += [
            PassError(
                f"pass '{name}' must stand after '{other}'",
                where=place,
                hint=f"move '{name}' below '{other}'",
                code="pass-order",
            )
            for other in planned.rewrite.after
            if other in _names(passes[index + 1 :])
            and other not in earlier
            and other not in planned.rewrite.required()
        ]
    raise_all(errors)


def arrange(passes: Sequence[PlannedPass]) -> tuple[PlannedPass, ...]:
    """Put every pass whose place was not given where its declarations, and those of others, allow.

    The others keep their order. A pass stands as near to its place in the list as it may.

    Raises:
        PassError: There is no such order; the cycle that prevents it.
    """
    _refuse_cycle(passes)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(passes)))
    placed = [index for index, planned in enumerate(passes) if planned.is_placed]
    graph.add_edges_from(pairwise(placed), reason="stands above it in the list")
    for index, planned in enumerate(passes):
        for earlier, reason in _declared(planned):
            if planned.is_placed and not any(
                one.is_called(earlier) for one in passes if not one.is_placed
            ):
                continue  # between passes in given places, check_order speaks
            graph.add_edges_from(
                ((other, index) for other in _indices(passes, earlier)), reason=reason
            )
    if not nx.is_directed_acyclic_graph(graph):
        raise _cycle(graph, passes)
    order = nx.lexicographical_topological_sort(graph, key=lambda index: index)
    return tuple(passes[index] for index in order)


def _refuse_cycle(passes: Sequence[PlannedPass]) -> None:
    """Refuse declarations that no order can satisfy."""
    graph = nx.DiGraph()
    for index, planned in enumerate(passes):
        for earlier, reason in _declared(planned):
            graph.add_edges_from(
                ((other, index) for other in _indices(passes, earlier)), reason=reason
            )
    repeated = len({planned.rewrite.name for planned in passes}) < len(passes)
    if not repeated and not nx.is_directed_acyclic_graph(graph):
        raise _cycle(graph, passes)


def _declared(planned: PlannedPass) -> Iterator[tuple[str, str]]:
    """(name of a pass that must stand earlier, why)."""
    name = planned.rewrite.name
    for required in planned.rewrite.required():
        yield required, f"'{name}' requires it"
    for other in planned.rewrite.after:
        yield other, f"'{name}' must stand after it"


def _indices(passes: Sequence[PlannedPass], name: str) -> list[int]:
    return [index for index, planned in enumerate(passes) if planned.is_called(name)]


def _names(passes: Sequence[PlannedPass]) -> set[str]:
    """Every name that they are called by."""
    return {name for one in passes for name in (one.rewrite.name, one.stands_for) if name}


def _cycle(graph: nx.DiGraph, passes: Sequence[PlannedPass]) -> PassError:
    edges = nx.find_cycle(graph)
    steps = [
        f"'{passes[earlier].rewrite.name}' before '{passes[later].rewrite.name}' "
        f"({graph.edges[earlier, later]['reason']})"
        for earlier, later in edges
    ]
    return PassError(
        f"no order satisfies these passes: {', '.join(steps)}",
        where=passes[edges[0][1]].place,
        hint="drop one of them, or change what it declares",
        code="pass-order",
    )
