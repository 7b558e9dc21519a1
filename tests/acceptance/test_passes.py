"""The built-in passes on many generated graphs."""

import pytest
from acceptance_table import Table
from built_in_passes import built_in_passes

from compiler.contracts.pass_base import Pass
from compiler.pass_kit import try_pass

pytestmark = pytest.mark.accept

GRAPHS = 200
# Other graphs than those of the plain tests.
SEED = 10_000


@pytest.mark.parametrize("rewriting", built_in_passes(), ids=str)
def test_a_built_in_pass_survives_generated_graphs(table: Table, rewriting: Pass) -> None:
    tried = try_pass(rewriting, graphs=GRAPHS, seed=SEED)
    said = "" if tried.failure is None else f"; {tried.failure.finding.said}"
    table.judge(
        f"{rewriting} on generated Qwen graphs",
        wanted=f"sound on {GRAPHS}",
        measured=f"{tried.graphs} tried, rewrote {tried.rewrites} on {tried.rewrote}{said}",
        is_met=tried.passed and tried.refused < tried.graphs // 4,
    )
