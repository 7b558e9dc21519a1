"""A failing case made small: first a plainer block, then as few nodes as still fail.

Parts of the graph around a node that the pass changes are tried first, by growing distance. What is
left is cut by delta debugging (Zeller and Hildebrandt 2002): leave out runs of nodes, half of them,
then a quarter, down to single ones, for as long as the pass fails in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import onnx

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Pass
from compiler.pass_kit.cases import Case, Recipe
from compiler.pass_kit.checks import Outcome, check_pass
from compiler.pass_kit.findings import Finding
from compiler.pass_kit.subgraphs import (
    Observed,
    integer_inputs,
    observe,
    part_of,
    with_plain_weights,
)

Holds = Callable[[Outcome], bool]

# A plainer block is looked for at most this often: each is a whole graph that is written and run.
_RECIPES = 30
# Changed nodes around which parts are tried, and how far.
_CENTRES, _DISTANCE = 6, 6


def shrink(rewriting: Pass, recipe: Recipe, finding: Finding) -> tuple[Case, Finding]:
    """The smallest case found on which `rewriting` has a finding like `finding`, and its finding.

    Args:
        rewriting: A pass that fails on the recipe's case.
        recipe: How that case was made.
        finding: What was found there.
    """
    case, finding = _plainer_block(rewriting, recipe, finding)
    if finding.lengths is not None:
        case = replace(case, lengths=(finding.lengths,))

    def fails(outcome: Outcome) -> bool:
        return finding.is_like(outcome.finding)

    case = smallest_part(rewriting, case, fails) or case
    plain = with_plain_weights(case)
    if _holds(rewriting, plain, fails):
        case = plain
    return case, check_pass(rewriting, case).finding or finding


def smallest_part(rewriting: Pass, case: Case, holds: Holds) -> Case | None:
    """As little of a case's graph as `holds` is true of, when the pass is run on it.

    Args:
        rewriting: The pass.
        case: The whole.
        holds: What must be true of the outcome.

    Returns:
        None where it holds for no part, not even for all nodes as a part.
    """
    try:
        observed = observe(case, case.lengths[0])
    except PassError:  # some tensor in the middle is nothing that onnxruntime can give
        return None
    integers = integer_inputs(case)

    def is_enough(names: Sequence[str]) -> bool:
        return _holds(rewriting, part_of(observed, set(names), inputs=integers), holds)

    centres = _changed_nodes(rewriting, observed)
    start = next((names for names in _around(observed, centres) if is_enough(names)), None)
    if start is None and not is_enough(observed.names()):
        return None
    names = frozenset(fewest(start or observed.names(), is_enough))
    small, kept = part_of(observed, names, inputs=integers), integers
    for name in sorted(integers):
        smaller = part_of(observed, names, inputs=kept - {name})
        if _holds(rewriting, smaller, holds):
            small, kept = smaller, kept - {name}
    return small


def fewest(names: Sequence[str], is_enough: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """As few of `names`, in order, as `is_enough` still holds for; it holds for all of them.

    No single one of the result can be left out.
    """
    kept = list(names)
    size = max(1, len(kept) // 2)
    while True:
        start, was = 0, len(kept)
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if rest and is_enough(rest):
                kept = rest
            else:
                start += size
        if size > 1:
            size //= 2
        elif len(kept) == was:
            return tuple(kept)


def _holds(rewriting: Pass, case: Case | None, holds: Holds) -> bool:
    if case is None:
        return False
    try:
        return holds(check_pass(rewriting, case, has_float64=False))
    except PassError:  # the part cannot be run even before the pass
        return False


def _plainer_block(rewriting: Pass, recipe: Recipe, finding: Finding) -> tuple[Case, Finding]:
    """The case of the plainest recipe that fails alike, taking each step that does."""
    case = recipe.case()
    assert case is not None, "the recipe that is shrunk has a case"
    simpler = recipe.simpler()
    for _ in range(_RECIPES):
        candidate = next(simpler, None)
        if candidate is None:
            break
        smaller = candidate.case()
        if smaller is None:
            continue
        found = check_pass(rewriting, smaller, has_float64=False).finding
        if found is not None and finding.is_like(found):
            case, finding, simpler = smaller, found, candidate.simpler()
    return case, finding


def _changed_nodes(rewriting: Pass, observed: Observed) -> tuple[str, ...]:
    """Nodes that the pass removes or changes; none where it does not run."""
    program = observed.case.copy()
    try:
        rewriting.run(program)
    except Exception:  # whatever a foreign pass raises is the finding; this seeks a short cut
        return ()
    after = {_text(node) for node in program.model().graph.node}
    return tuple(node.name for node in observed.model.graph.node if _text(node) not in after)


def _text(node: onnx.NodeProto) -> bytes:
    return node.SerializeToString(deterministic=True)


def _around(observed: Observed, centres: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Nodes within a growing distance of a centre, from the first and the last centres."""
    nodes = observed.model.graph.node
    touched = {node.name: {*node.input, *node.output} - {""} for node in nodes}
    given = {v.name for v in observed.model.graph.input}
    given |= {tensor.name for tensor in observed.model.graph.initializer}
    half = _CENTRES // 2
    parts = {name: {name} for name in (*centres[:half], *centres[half:][-half:])}
    for _ in range(_DISTANCE):
        for centre, part in parts.items():
            yield tuple(name for name in touched if name in part)
            tensors = set[str]().union(*(touched[name] for name in part)) - given
            parts[centre] = {name for name, around in touched.items() if around & tensors}
