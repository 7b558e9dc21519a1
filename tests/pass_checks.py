"""What the tests of small passes ask of each: a golden text, a second run, equal numbers."""

from pathlib import Path

import numpy as np
from program_runs import run_pass, run_program
from program_text import Golden, changed, program_from_text, text_of

from compiler.contracts.pass_base import Pass, PassReport

GOLDEN = Path(__file__).parent / "passes" / "golden"


class PassChecks:
    """A pass and the text of a graph that it rewrites, `passes/golden/<pass>.before.txt`."""

    def __init__(self, rewriting: Pass) -> None:
        self.rewriting = rewriting
        self.before = (GOLDEN / f"{rewriting.name}.before.txt").read_text(encoding="utf-8")

    def rewritten(self, golden: Golden) -> PassReport:
        """One run, held against `golden/<pass>.after.txt`; a second one finds nothing to do."""
        program = program_from_text(self.before)
        report = run_pass(self.rewriting, program)
        once = text_of(program)
        golden(f"{self.rewriting.name}.after.txt", once)
        again = run_pass(self.rewriting, program)
        assert again.rewrites == ()
        assert again.skips == report.skips
        assert text_of(program) == once
        return report

    def on(self, replaced: dict[str, str]) -> PassReport:
        """A run on a changed graph; where nothing is rewritten, nothing may change."""
        program = program_from_text(changed(self.before, replaced))
        before = text_of(program)
        report = run_pass(self.rewriting, program)
        assert report.rewrites or text_of(program) == before
        return report

    def assert_numbers(self, *, rtol: float = 0.0, atol: float = 0.0, past: int = 5) -> None:
        """Random inputs give the same outputs before and after, to the bit unless told."""
        program = program_from_text(self.before)
        random = np.random.default_rng(3)
        inputs: dict[str, np.ndarray] = {}
        weights, program.weights = program.weights, {}
        for spec in program.inputs():
            shape = [past if isinstance(axis, str) else axis for axis in spec.shape]
            drawn = random.standard_normal(shape, dtype=np.float32)
            inputs[spec.name] = drawn > 0 if spec.dtype == "bool" else drawn.astype(spec.dtype)
        program.weights = weights
        wanted = run_program(program, inputs)
        report = run_pass(self.rewriting, program)
        assert report.rewrites
        found = run_program(program, inputs)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)
