"""What the author of a pass tries it with: generated Qwen blocks, every check, and the shrinker."""

from compiler.pass_kit.cases import Case, case_of, draw_recipe, plain_recipe
from compiler.pass_kit.checks import Outcome, check_pass
from compiler.pass_kit.counterexample import read_case
from compiler.pass_kit.findings import Finding
from compiler.pass_kit.fuzz import Failure, Tried, try_pass
from compiler.pass_kit.program_text import program_from_text, text_of

__all__ = [
    "Case",
    "Failure",
    "Finding",
    "Outcome",
    "Tried",
    "case_of",
    "check_pass",
    "draw_recipe",
    "plain_recipe",
    "program_from_text",
    "read_case",
    "text_of",
    "try_pass",
]
