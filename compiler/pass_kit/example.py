"""What a pass does, shown on as little as it does it to."""

import re
from dataclasses import dataclass

from compiler.contracts.pass_base import Pass, Skip
from compiler.contracts.program import Program
from compiler.pass_kit.cases import Recipe, draw_recipe, plain_recipe
from compiler.pass_kit.checks import Outcome, check_pass
from compiler.pass_kit.shrink import smallest_part

# Blocks on which skips are looked for, and an example where the plain block gives none.
_BLOCKS = 16


@dataclass(frozen=True)
class Example:
    """A graph before and after a pass.

    Attributes:
        before: As small as it can be with something left to rewrite.
        after: What the pass makes of it.
        rewrites: What it reports.
    """

    before: Program
    after: Program
    rewrites: tuple[str, ...]


def example_of(rewriting: Pass) -> Example | None:
    """The smallest part of a generated block that a pass rewrites; None where it rewrites none."""
    for recipe in _recipes(rewriting):
        case = recipe.case()
        if case is None:
            continue
        whole = check_pass(rewriting, case, has_float64=False)

        def is_alike(outcome: Outcome, whole: Outcome = whole) -> bool:
            """Rewrites the same thing, and is as sound."""
            is_sound = outcome.finding is None or whole.finding is not None
            return is_sound and not set(whole.rewrites).isdisjoint(outcome.rewrites)

        small = smallest_part(rewriting, case, is_alike) if whole.rewrites else None
        if small is None:
            continue
        after = small.copy()
        report = rewriting.run(after)
        after.prune_parameters()
        return Example(small.program, after, report.rewrites)
    return None


def skips_of(rewriting: Pass) -> tuple[Skip, ...]:
    """What a pass declines on generated blocks: one node for each reason."""
    found: dict[str, Skip] = {}
    for recipe in _recipes(rewriting):
        case = recipe.case()
        if case is None:
            continue
        for skip in check_pass(rewriting, case, has_numbers=False).skips:
            found.setdefault(_without_names(skip.reason), skip)
    return tuple(found.values())


def _recipes(rewriting: Pass) -> list[Recipe]:
    return [
        plain_recipe(rewriting),
        *(draw_recipe(rewriting, seed=seed) for seed in range(_BLOCKS)),
    ]


def _without_names(reason: str) -> str:
    """A reason without the nodes and numbers in it."""
    return re.sub(r"\S*[./]\S+|\d+", "", reason)
