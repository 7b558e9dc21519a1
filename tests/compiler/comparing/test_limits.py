"""Figures against limits, and the limit that would let each pass, as the YAML reads it."""

import math

import pytest
import yaml

from compiler.comparing.limits import is_within, limit_findings, passing_limit
from compiler.contracts.comparison import Finding


@pytest.mark.parametrize(
    ("key", "figure", "limit"),
    [
        ("max_abs", 0.00301, "0.0031"),
        ("max_abs", 0.0030, "0.0030"),
        ("max_abs", 1234.5, "1300"),
        ("max_abs", 99.1, "100"),
        ("max_kl", 3.14e-9, "0.0000000032"),
        ("min_cosine", 0.99987, "0.99987"),
        ("min_cosine", 0.999871, "0.99987"),
        ("min_greedy", 0.9784, "0.978"),
        ("min_greedy", 0.75, "0.75"),
        ("min_greedy", 0.0, "0.0"),
    ],
)
def test_the_limit_that_would_pass(key: str, figure: float, limit: str):
    assert passing_limit(key, figure) == limit
    # PyYAML reads `1e-5` as text: a number it must be, and one that lets the figure pass.
    read = yaml.safe_load(limit)
    assert isinstance(read, float | int)
    assert is_within(key, figure, read)


@pytest.mark.parametrize(
    ("key", "figure"),
    [("max_abs", math.nan), ("max_abs", math.inf), ("min_cosine", math.nan), ("min_cosine", -0.2)],
)
def test_no_limit_would_do(key: str, figure: float):
    assert passing_limit(key, figure) == ""
    (finding,) = limit_findings(key, figure, 0.5, where="x", what="it")
    assert finding.hint == ""


def test_a_limit_is_passed_by_itself():
    assert is_within("max_abs", 0.5, 0.5)
    assert is_within("min_top1", 0.5, 0.5)
    assert not is_within("max_abs", 0.51, 0.5)
    assert not is_within("min_top1", 0.49, 0.5)
    assert not is_within("max_abs", math.nan, 0.5)
    assert not is_within("min_top1", math.nan, 0.5)


def test_a_finding_says_figure_limit_and_what_would_pass():
    assert limit_findings("max_abs", 0.5, 0.5, where="x", what="the difference") == ()
    assert limit_findings(
        "max_abs", 0.00302, 0.001, where="x", what="the difference", because="so it is"
    ) == (
        Finding(
            "limit",
            "x",
            "the difference is 0.00302, max_abs is 0.001; so it is",
            "compare: {max_abs: 0.0031} would pass",
        ),
    )
