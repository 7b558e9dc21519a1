"""The built-in passes that run before a pass: what it requires, and a few drawn besides."""

import random
from collections.abc import Iterable

import networkx as nx

from compiler import registry
from compiler.contracts.pass_base import Pass

# How often a built-in pass that is not required stands before the tried one.
_SHARE = 0.3
# How often nothing but the required passes stands before it.
_BARE = 0.3


def required_earlier(rewriting: Pass, *wanted: str) -> tuple[Pass, ...]:
    """What `rewriting` requires, `wanted`, and whatever these require, in a valid order."""
    return _ordered(_closure({*rewriting.required(), *wanted}).values(), random.Random(0))


def draw_earlier(rewriting: Pass, draw: random.Random) -> tuple[Pass, ...]:
    """What `rewriting` requires and built-in passes that may stand before it, in a valid order."""
    chosen = _closure(rewriting.required())
    if draw.random() < _BARE:
        return _ordered(chosen.values(), draw)
    for name in sorted(registry.PASSES):
        drawn = draw.random() < _SHARE
        added = _closure([name]) if drawn else {}
        if not any(_follows(one, rewriting.name) for one in added.values()):
            chosen |= added
    return _ordered(chosen.values(), draw)


def _follows(one: Pass, name: str) -> bool:
    return name in (one.name, *one.after, *one.required())


def _closure(names: Iterable[str]) -> dict[str, Pass]:
    """Passes with their default options, and what they require, by name."""
    found: dict[str, Pass] = {}
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = registry.load_pass(name)()
        waiting += sorted(found[name].required())
    return found


def _ordered(passes: Iterable[Pass], draw: random.Random) -> tuple[Pass, ...]:
    """An order that keeps what each declares; ties are broken by `draw`."""
    by_name = {one.name: one for one in passes}
    graph = nx.DiGraph()
    graph.add_nodes_from(sorted(by_name))
    graph.add_edges_from(
        (before, name)
        for name in sorted(by_name)
        for before in (*by_name[name].required(), *by_name[name].after)
        if before in by_name
    )
    rank = {name: draw.random() for name in sorted(by_name)}
    return tuple(by_name[n] for n in nx.lexicographical_topological_sort(graph, key=rank.get))
