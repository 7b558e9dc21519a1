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


def random_inputs(program: Program, *, past: int, valid: int) -> dict[str, np.ndarray]:
    """Inputs of the graph as the text has it, its parameters among them."""
    found = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    random = np.random.default_rng(2)
    for name, weight in program.weights.items():
        found[name] = random.standard_normal(weight.shape, dtype=np.float32)
    return found
