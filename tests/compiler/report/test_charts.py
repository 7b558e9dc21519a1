"""The drawings: what stands where, in the numbers of their elements."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace

import pytest
from sample_report import failing_comparison, ladder, measures, passing_comparison

from compiler.contracts.comparison import Comparison, StepComparison, TokenStrip
from compiler.report.axes import bands, log_axis, step_for
from compiler.report.heat_map import heat_map
from compiler.report.histogram import histograms
from compiler.report.layer_chart import layer_chart, layer_errors
from compiler.report.strip_chart import strip_chart
from compiler.report.waterfall import waterfall

NAN = float("nan")


def elements(svg: str, name: str, kind: str) -> list[ET.Element]:
    return [one for one in ET.fromstring(svg).iter(name) if one.get("class") == kind]


def path(svg: str, kind: str) -> str:
    (found,) = elements(svg, "path", kind)
    return found.get("d") or ""


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ET.fromstring(svg).iter("text")]


def tooltips(svg: str, name: str) -> list[str]:
    return [one[0].text or "" for one in ET.fromstring(svg).iter(name) if len(one)]


def with_local(comparison: Comparison, values: Mapping[int, float | None]) -> Comparison:
    """Other local errors, at every tap of a layer."""
    return replace(
        comparison,
        taps=tuple(
            replace(tap, local=None if (error := values[tap.layer]) is None else measures(error))
            if tap.layer is not None and tap.layer in values
            else tap
            for tap in comparison.taps
        ),
    )


def test_decades_hold_every_value() -> None:
    axis = log_axis([3e-5, 0.0, NAN, 2e-2], start=100.0, stop=0.0)

    assert (axis.low, axis.high) == (-5, -1)
    assert axis.at(1e-5) == pytest.approx(100.0)
    assert axis.at(1e-3) == pytest.approx(50.0)
    assert [label for _, label in axis.ticks(8)] == ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]
    assert len(axis.minor()) == 4 * 8
    assert log_axis([1e-3], start=0.0, stop=1.0).high == -2
    assert log_axis([], start=0.0, stop=1.0).minor() == ()


@pytest.mark.parametrize(
    ("count", "most", "step"), [(8, 8, 1), (9, 8, 2), (80, 31, 5), (700, 8, 100)]
)
def test_labels_are_thinned_to_round_numbers(count: int, most: int, step: int) -> None:
    assert step_for(count, most) == step


@pytest.mark.parametrize("layers", [1, 2, 30, 80, 200])
def test_layers_fit_whatever_their_number(layers: int) -> None:
    comparison = passing_comparison(layers=layers)
    chart, heat = layer_chart(comparison), heat_map(comparison)
    columns = bands(layers, left=72.0, right=944.0)

    assert chart is not None
    assert heat is not None
    assert columns.right <= 944.001
    assert len(tooltips(chart.svg, "rect")) == layers
    assert len(tooltips(heat.svg, "rect")) == 17 * layers
    numbers = [str(layer) for layer in columns.labelled()]
    assert 1 <= len(numbers) <= 31
    for svg in (chart.svg, heat.svg):
        said = texts(svg)
        start = said.index("layer") - len(numbers)
        assert said[start : said.index("layer")] == numbers
    assert path(chart.svg, "line accumulated").count("L") == layers - 1


def test_the_largest_local_error_of_a_layer_is_drawn() -> None:
    every = {error.layer: error for error in layer_errors(failing_comparison())}
    ends = {error.layer: error for error in layer_errors(failing_comparison(level="layer"))}

    assert (every[17].local, every[17].point) == (2.3e-3, "down")
    assert (ends[17].local, ends[17].point) == (2.3e-3, "resid2")
    assert [(error.accumulated or 0.0) > 1e-3 for error in every.values()] == (
        [False] * 17 + [True] * 13
    )


def test_zero_stands_on_a_floor_of_its_own() -> None:
    plain = layer_chart(with_local(passing_comparison(layers=4), {0: 1e-6}))
    zero = layer_chart(with_local(passing_comparison(layers=4), {1: 0.0}))
    assert plain is not None
    assert zero is not None

    (floor,) = elements(zero.svg, "path", "floor")
    height = (floor.get("d") or "").split()[-1]
    assert "0" in [one.text for one in elements(zero.svg, "text", "end")]
    # A diamond begins above its middle.
    middles = [
        float(y) + 3.2 for y in re.findall(r"M[\d.]+ ([\d.]+)l", path(zero.svg, "mark local"))
    ]
    assert middles[1] == pytest.approx(float(height))
    assert max(middles[:1] + middles[2:]) < float(height)
    # The line does not run through a value that the axis has no place for.
    assert path(zero.svg, "line local").count("M") == 2
    assert elements(plain.svg, "path", "floor") == []


def test_what_is_not_finite_stands_above_as_a_cross() -> None:
    chart = layer_chart(with_local(passing_comparison(layers=4), {1: NAN, 3: float("inf")}))
    assert chart is not None

    assert path(chart.svg, "cross local").count("M") == 2 * 2
    assert "not finite" in texts(chart.svg)
    assert any("local not a number" in said for said in tooltips(chart.svg, "rect"))


def test_the_limit_is_drawn_by_name() -> None:
    limits = {"max_rel": 1e-3, "max_local": 8e-4, "max_abs": 1.0, "min_top1": 1.0}
    chart = layer_chart(replace(passing_comparison(), limits=limits))
    bare = layer_chart(replace(passing_comparison(), limits={}))
    assert chart is not None
    assert bare is not None

    assert [text for text in texts(chart.svg) if "max" in text] == ["max_local 8e-4"]
    assert len(elements(chart.svg, "path", "limit")) == 1
    assert (chart.has_limit, bare.has_limit) == (True, False)


def test_without_local_errors_there_is_one_line() -> None:
    whole = passing_comparison(layers=3)
    comparison = with_local(whole, dict.fromkeys(range(3)))
    chart, heat = layer_chart(comparison), heat_map(comparison)
    assert chart is not None
    assert heat is not None

    assert (chart.has_accumulated, chart.has_local) == (True, False)
    assert elements(chart.svg, "path", "line local") == []
    assert not heat.is_local
    assert heat_map(replace(whole, level="layer")) is None


def test_cells_say_their_power_of_ten() -> None:
    values = {0: 3e-5, 1: 0.0, 2: NAN, 3: 2.0, 4: 1e-12}
    heat = heat_map(with_local(passing_comparison(layers=6), values))
    assert heat is not None

    characters = {
        kind: set("".join(one.text or "" for one in elements(heat.svg, "text", f"cell {kind}")))
        for kind in ("h0", "h7", "hz", "hn")
    }
    assert characters["h7"] == {"+"}
    assert characters["hz"] == {"0"}
    assert characters["hn"] == {"!"}
    assert "\N{MIDDLE DOT}" in characters["h0"]
    assert heat.has_zero
    assert heat.has_unplaced
    assert heat.has_large


def test_the_limit_sets_how_strong_an_error_looks() -> None:
    def shades(limits: dict[str, float]) -> list[str]:
        comparison = with_local(passing_comparison(layers=2), {0: 2e-8, 1: 2e-6})
        heat = heat_map(replace(comparison, limits=limits))
        assert heat is not None
        return sorted({one.get("class") or "" for one in ET.fromstring(heat.svg).iter("rect")})

    assert shades({"max_local": 1e-3}) == ["h2", "h4"]
    assert shades({}) == ["h3", "h7"]


def test_recomputed_and_wrong_taps_are_marked() -> None:
    heat = heat_map(failing_comparison())
    assert heat is not None

    assert path(heat.svg, "corner").count("M") == 5 * 30
    assert path(heat.svg, "wrong").count("M") == 1
    assert heat.said == "0.0023 in layer 17 at down"
    assert any(
        said.startswith("layer 17, down: fail\nlocal 0.0023,")
        for said in tooltips(heat.svg, "rect")
    )


def test_a_strip_tells_equal_near_and_different_apart() -> None:
    strip = TokenStrip("prompt0", 5, (10, 11, 12, 13), (10, 99, 77), (1,))
    chart = strip_chart(replace(passing_comparison(), strips=(strip,)))
    assert chart is not None

    kinds = [one.get("class") for one in ET.fromstring(chart.svg).iter("rect")]
    assert kinds == ["s-equal", "s-near", "s-different", "s-different"]
    assert tooltips(chart.svg, "rect")[1:] == [
        "prompt0, step 1\nreference 11\ncandidate 99\nnear-tie",
        "prompt0, step 2\nreference 12\ncandidate 77",
        "prompt0, step 3\nreference 13\ncandidate none",
    ]
    assert [one.text for one in elements(chart.svg, "text", "cell s-different")] == ["\u2260\u2260"]
    assert "1 of 4 equal, after 5 tokens" in texts(chart.svg)
    assert strip_chart(replace(passing_comparison(), strips=())) is None


def test_a_step_is_in_one_bar() -> None:
    for spread in histograms(passing_comparison()):
        counts = [int(said.split(": ")[1].split()[0]) for said in tooltips(spread.svg, "rect")]
        assert sum(counts) == 96, spread.name


def test_zeros_and_what_is_not_finite_have_bars_of_their_own() -> None:
    steps = passing_comparison().steps

    def with_kl(step: StepComparison, kl: float) -> StepComparison:
        return replace(step, kl=kl)

    changed = (
        with_kl(steps[0], 0.0),
        with_kl(steps[1], -1e-12),
        with_kl(steps[2], NAN),
        *steps[3:],
    )
    _, kl, _ = histograms(replace(passing_comparison(), steps=changed))
    assert tooltips(kl.svg, "rect")[-2:] == ["0 or less: 2 steps", "not finite: 1 step"]
    assert kl.said.startswith("96 steps, 2 at 0 or less, largest ")
    assert kl.said.endswith(", 1 not finite")


def test_shares_follow_one_another_up_to_the_whole() -> None:
    svg = waterfall(ladder())
    bars = [
        (float(one.get("x") or 0), float(one.get("width") or 0), one.get("class"))
        for one in ET.fromstring(svg).iter("rect")
    ]
    scale = bars[-1][1]

    assert [kind for _, _, kind in bars] == [
        "more",
        "more",
        "more largest",
        "less",
        "more",
        "more",
        "whole",
    ]
    assert [width / scale for _, width, _ in bars] == pytest.approx(
        [0.02, 0.07, 0.61, 0.06, 0.31, 0.05, 1.0], abs=1e-3
    )
    assert bars[3][0] == pytest.approx(bars[2][0] + bars[2][1] - bars[3][1], abs=0.2)
    assert "+61.0%  largest" in texts(svg)
    assert "\N{MINUS SIGN}6.0%" in texts(svg)


def test_without_shares_there_is_no_waterfall() -> None:
    steps = tuple(replace(step, share=NAN) for step in ladder().steps)

    assert waterfall(replace(ladder(), steps=steps)) == ""
    assert "not a number" in waterfall(replace(ladder(), steps=(steps[0], *ladder().steps[1:])))
