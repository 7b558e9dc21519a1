"""A pass tried on many generated graphs; the first failure is made small and kept as text.

tried = try_pass(FuseRMSNorm(), graphs=20)
assert tried.failure is None, tried.failure.said
"""

from collections.abc import Callable
from dataclasses import dataclass

from compiler.contracts.pass_base import Pass, Skip
from compiler.pass_kit.cases import Case, Recipe, draw_recipe
from compiler.pass_kit.checks import Outcome, check_pass
from compiler.pass_kit.findings import Finding
from compiler.pass_kit.shrink import shrink


@dataclass(frozen=True)
class Failure:
    """The first graph on which a pass failed.

    Attributes:
        recipe: How the graph was made.
        found: What was wrong there.
        case: The smallest graph found that fails alike.
        finding: What is wrong on that one.
    """

    recipe: Recipe
    found: Finding
    case: Case
    finding: Finding


@dataclass(frozen=True)
class Tried:
    """What came of a pass on generated graphs.

    Attributes:
        graphs: How many it was run on.
        rewrote: On how many of them it rewrote something.
        rewrites: How much it rewrote in all.
        declined: On how many it declined a candidate.
        refused: On how many it raised a CompilerError.
        examples: One skip for each reason that it gave, up to a few.
        has_invariants: Whether it registers an invariant anywhere.
        failure: Where it failed; None where it never did.
    """

    graphs: int
    rewrote: int
    rewrites: int
    declined: int
    refused: int
    examples: tuple[Skip, ...]
    has_invariants: bool
    failure: Failure | None

    @property
    def matched_nothing(self) -> bool:
        """Whether it neither rewrote anything nor promised anything, so that nothing was tried."""
        return not self.rewrites and not self.has_invariants

    @property
    def passed(self) -> bool:
        """Whether it did something, and nothing wrong."""
        return self.failure is None and not self.matched_nothing


# Skips that are kept as examples.
_EXAMPLES = 8
# Blocks that are drawn for each graph at most: what a pass requires may refuse some.
_DRAWS = 5


def try_pass(
    rewriting: Pass,
    *,
    graphs: int,
    seed: int = 0,
    watch: Callable[[int], None] | None = None,
) -> Tried:
    """Run a pass on generated Qwen blocks until one fails, and make that one small.

    Args:
        rewriting: The pass, with its options.
        graphs: How many blocks; those that an earlier pass refuses are drawn anew.
        seed: Of the first block; equal seeds give equal blocks.
        watch: Told the number of finished graphs.
    """
    outcomes: list[Outcome] = []
    failure: Failure | None = None
    number = 0
    while len(outcomes) < graphs and number < _DRAWS * graphs and failure is None:
        recipe = draw_recipe(rewriting, seed=seed + number)
        case = recipe.case()
        if case is not None:
            outcome = check_pass(rewriting, case)
            outcomes.append(outcome)
            if outcome.finding is not None:
                small, finding = shrink(rewriting, recipe, outcome.finding)
                failure = Failure(recipe, outcome.finding, small, finding)
            if watch is not None:
                watch(len(outcomes))
        number += 1
    examples = {skip.reason: skip for outcome in outcomes for skip in outcome.skips}
    return Tried(
        graphs=len(outcomes),
        rewrote=sum(bool(outcome.rewrites) for outcome in outcomes),
        rewrites=sum(len(outcome.rewrites) for outcome in outcomes),
        declined=sum(bool(outcome.skips) for outcome in outcomes),
        refused=sum(outcome.refusal is not None for outcome in outcomes),
        examples=tuple(examples.values())[:_EXAMPLES],
        has_invariants=any(outcome.has_invariants for outcome in outcomes),
        failure=failure,
    )
