"""Numbers in words, and colours that can be read."""

import re
from itertools import product
from pathlib import Path

import pytest
from colour_contrast import Colour, contrast, luminance

import compiler.report
from compiler.report.words import (
    cosine,
    counted,
    largest,
    number,
    perplexity,
    share,
    shortened,
    signed_share,
)

NAN, INFINITE = float("nan"), float("inf")
STYLE = Path(compiler.report.__file__).parent / "templates" / "style.css"
# Text and what it stands on.
READ = [
    *product(("ink", "muted", "link", "good", "bad", "limit"), ("page",)),
    *product(("ink", "muted", "bad"), ("bad-soft",)),
    *product(("ink", "good"), ("good-soft",)),
    *product(("ink",), ("soft",)),
    *product(("cell-low",), ("h0", "h1", "h2", "h3", "h4", "zero")),
    *product(("cell-high",), ("h5", "h6", "h7", "bad")),
    ("equal-ink", "equal"),
    ("near", "near-soft"),
    ("page", "bad"),
]
# Lines and marks, which may be fainter.
SEEN = [*product(("accumulated", "local", "limit", "bar", "axis"), ("page",))]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.00123456, "0.001235"),
        (1.23456e-5, "1.23e-5"),
        (-2e-7, "-2e-7"),
        (12345.6, "12346"),
        (2.5e9, "2.5e9"),
        (NAN, "not a number"),
        (INFINITE, "infinite"),
        (-INFINITE, "minus infinite"),
    ],
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert number(value) == said


def test_all_means_all() -> None:
    assert [share(value) for value in (1.0, 0.97872, 0.99999, 0.9999999999, 0.0)] == [
        "100%",
        "97.87%",
        "99.999%",
        "almost 100%",
        "0%",
    ]
    assert cosine(1.0) == "1"
    assert cosine(1 - 2e-8) == "0.99999998"
    assert cosine(1 - 2e-11) == "1 \N{MINUS SIGN} 2e-11"
    assert perplexity(14.203212) == "14.2032"
    assert [one(NAN) for one in (share, cosine, perplexity, signed_share)] == ["not a number"] * 4


def test_nan_is_the_largest() -> None:
    assert largest([1.0, INFINITE]) == INFINITE
    assert number(largest([1.0, NAN, INFINITE])) == "not a number"
    assert number(largest([])) == "not a number"


def test_words_fit() -> None:
    assert (counted(1, "step"), counted(2, "step")) == ("1 step", "2 steps")
    assert shortened("two\nlines", 20) == "two lines"
    assert shortened("a long name", 7) == "a long\N{HORIZONTAL ELLIPSIS}"


def palettes() -> dict[str, dict[str, Colour]]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    named = {
        name: {
            key: (int(red, 16), int(green, 16), int(blue, 16))
            for key, red, green, blue in re.findall(
                r"--([a-z0-9-]+): #([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2});", block
            )
        }
        for name, block in (("light", light), ("dark", dark))
    }
    assert named["light"].keys() == named["dark"].keys()
    return named


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(scheme: str) -> None:
    palette = palettes()[scheme]

    faint = {pair: contrast(*(palette[name] for name in pair)) for pair in READ + SEEN}
    assert {
        pair: found for pair, found in faint.items() if found < (4.5 if pair in READ else 3)
    } == {}
    shades = [luminance(palette[f"h{k}"]) for k in range(8)]
    assert shades == sorted(shades, reverse=scheme == "light")
