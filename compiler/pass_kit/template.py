"""What `passes new` writes: a small pass that works, and its test."""

from string import Template

# A pass that matches something in every Qwen, whoever exported it, and rewrites it.
PASS = Template('''\
"""The square of an RMS norm is a product, not a power.

    Pow(x, 2)  ->  Mul(x, x)

Declines, with the reason, a power whose exponent is computed or is not two. Costs nothing: both
round x * x once.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy


def _exponent(power: gs.Node) -> float | None:
    """The exponent where it is one constant number."""
    exponent = power.inputs[1]
    if not isinstance(exponent, gs.Constant) or np.size(exponent.values) != 1:
        return None
    return float(np.asarray(exponent.values).item())


def _match(power: gs.Node) -> gs.Tensor | str:
    """What is squared; or why this power is left alone."""
    exponent = _exponent(power)
    if exponent is None:
        return "its exponent is not one constant"
    if exponent != 2:
        return f"its exponent is {exponent:g}, expected 2"
    return power.inputs[0]


def ${function_name}(program: Program) -> PassReport:
    """Rewrite every square; match all of it first, so that nothing is left half done."""
    rewrites: list[str] = []
    skips: list[Skip] = []
    for power in [node for node in program.graph.nodes if node.op == "Pow"]:
        x = _match(power)
        if isinstance(x, str):
            skips.append(Skip(power.name, x))
            continue
        # The node keeps its name and what it makes; so whoever reads it need not change.
        power.op, power.inputs = "Mul", [x, x]
        rewrites.append(power.name)
    tidy(program.graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class ${class_name}(Pass):
    """Pow(x, 2) -> Mul(x, x)."""

    name: ClassVar = "${name}"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Rewrite each square; decline other powers."""
        return ${function_name}(program)
''')

TEST = Template('''\
"""Squares become products, other powers stay."""

from pathlib import Path

from compiler.pass_kit import case_of, check_pass, program_from_text, text_of, try_pass
from compiler.registry import load_pass

PASS = load_pass("${module_name}.py:${class_name}", base=Path(__file__).parent)()

BEFORE = """
main (float[1, 4, 6] x) => (float[1, 4, 6] y) <float two = {2}>
{
  ["norm/Pow"] y = Pow (x, two)
}
"""
AFTER = """\\
inputs
  float32[1, 4, 6] x
outputs
  float32[1, 4, 6] y
nodes
  ["norm/Pow"] y = Mul(x, x)
"""


def test_golden():
    program = program_from_text(BEFORE)
    report = PASS.run(program)
    assert text_of(program) == AFTER
    assert (report.rewrites, report.skips) == (("norm/Pow",), ())


def test_a_second_run_rewrites_nothing():
    program = program_from_text(BEFORE)
    PASS.run(program)
    report = PASS.run(program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == AFTER


def test_the_numbers_are_the_same():
    outcome = check_pass(PASS, case_of(program_from_text(BEFORE)))
    assert outcome.rewrites == ("norm/Pow",)
    assert outcome.finding is None


def test_another_power_is_declined():
    program = program_from_text(BEFORE.replace("two = {2}", "two = {3}"))
    before = text_of(program)
    (skip,) = PASS.run(program).skips
    assert (skip.node, skip.reason) == ("norm/Pow", "its exponent is 3, expected 2")
    assert text_of(program) == before


def test_an_exponent_that_is_an_input_is_declined():
    text = BEFORE.replace("x) =>", "x, float two) =>").replace("<float two = {2}>", "")
    program = program_from_text(text)
    (skip,) = PASS.run(program).skips
    assert skip.reason == "its exponent is not one constant"


def test_generated_models_give_the_same_numbers():
    tried = try_pass(PASS, graphs=8)
    assert tried.failure is None, tried.failure.finding.said
    assert tried.rewrote > 0
''')
