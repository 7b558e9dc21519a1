"""The small attention of `passes/golden/attention.before.txt`, and random inputs for it."""

from pathlib import Path

import numpy as np
from program_runs import traced_inputs

from compiler.contracts.program import Program

TEXT = (Path(__file__).parent / "passes" / "golden" / "attention.before.txt").read_text(
    encoding="utf-8"
)
TOKENS, CONTEXT, VOCABULARY = 4, 10, 9
# (past, valid): whole and padded windows, the first and the last that fit.
LENGTHS = ((0, 4), (0, 1), (3, 2), (6, 4), (9, 1))

# Its line that says what a row may see.
ALLOWED = '["mask/And"] allowed = And (causal, real)'


def windowed(size: int) -> dict[str, str]:
    """What to replace in TEXT so that only the last `size` positions are seen."""
    return {
        ALLOWED: (
            '["mask/Sub"] distance = Sub (rows, columns)\n'
            '["mask/Less"] near = Less (distance, window)\n'
            '["mask/And_1"] band = And (causal, near)\n'
            '["mask/And"] allowed = And (band, real)'
        ),
        "int64 zero = {0}": f"int64 zero = {{0}}, int64 window = {{{size}}}",
    }


def random_inputs(program: Program, *, past: int, valid: int) -> dict[str, np.ndarray]:
    """Inputs of the graph, as the text has it or after passes, its parameters among them."""
    found = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    random = np.random.default_rng(2)
    for name, weight in program.weights.items():
        found[name] = random.standard_normal(weight.shape, dtype=np.float32)
    return found
