"""The HTML report in Debian's chromium: it draws, fits a telephone and has a dark side."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from colour_contrast import Colour, contrast, luminance
from sample_report import sample_report

from compiler.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
# The sandbox needs rights that containers lack; the rest keeps it from reaching for the network.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZES = {"desk": (1120, 800), "telephone": (375, 700)}
TEXTS = ["body", ".verdict", ".note", "thead th", ".findings .hint", "svg text"]
COLOURS = """names => names.map(name => {
    const element = document.querySelector(name);
    const style = getComputedStyle(element);
    let back = element;
    while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
    const ink = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    return [name, ink, getComputedStyle(back).backgroundColor];
})"""
BOXES = """() => [...document.querySelectorAll("svg[role=img]")].map(svg => {
    const box = svg.getBoundingClientRect();
    return [box.width, box.height, svg.querySelectorAll("path, rect").length];
})"""
# Labels of a drawing, side by side or one above the other, never over one another.
OVERLAPS = """() => [...document.querySelectorAll("svg[role=img]")].flatMap(svg => {
    const texts = [...svg.querySelectorAll("text:not(.cell)")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    const frame = svg.getBoundingClientRect();
    const found = [];
    boxes.forEach((a, i) => {
        if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1)
            found.push(`${texts[i].textContent} leaves its drawing`);
        boxes.slice(i + 1).forEach((b, j) => {
            const across = a.left < b.right - 1 && b.left < a.right - 1;
            const along = a.top < b.bottom - 3 && b.top < a.bottom - 3;
            if (across && along)
                found.push(`${texts[i].textContent} over ${texts[i + 1 + j].textContent}`);
        });
    });
    return found;
})"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("not run: the package playwright is missing")
    if not CHROMIUM.exists():
        pytest.skip(f"not run: {CHROMIUM} is missing")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(sample_report(), path, title="SmolLM2-135M: two targets against torch")
    return path


def opened(
    browser: "Browser", report: Path, *, size: str, scheme: Literal["light", "dark"] = "light"
) -> tuple["Page", list[str]]:
    """The page, with all that it complained of or asked for; a picture of it lies beside it."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    noted: list[str] = []
    page.on("console", lambda message: noted.append(message.text))
    page.on("pageerror", lambda error: noted.append(str(error)))
    page.on("request", lambda request: noted.append(request.url))
    page.goto(report.as_uri())
    picture = report.with_name(f"{size}-{scheme}.png")
    page.screenshot(path=picture, full_page=True)
    print(f"screenshot: {picture}")
    return page, noted


@pytest.mark.parametrize("size", SIZES)
def test_it_opens_without_a_complaint(browser: "Browser", report: Path, size: str) -> None:
    _, noted = opened(browser, report, size=size)

    assert noted == [report.as_uri()]


def test_every_plot_is_drawn(browser: "Browser", report: Path) -> None:
    page, _ = opened(browser, report, size="desk")

    boxes = page.evaluate(BOXES)
    assert len(boxes) == 13
    assert all(width > 250 and height > 100 and marks > 5 for width, height, marks in boxes), boxes
    assert page.evaluate(OVERLAPS) == []


def test_a_telephone_scrolls_tables_not_the_page(browser: "Browser", report: Path) -> None:
    page, _ = opened(browser, report, size="telephone")

    assert page.evaluate("document.scrollingElement.scrollWidth") <= SIZES["telephone"][0]
    inner = (
        "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
    )
    assert page.evaluate(f"{inner}.length") > 0


def test_light_and_dark_can_be_read(browser: "Browser", report: Path) -> None:
    light, dark = (
        opened(browser, report, size="desk", scheme=scheme)[0].evaluate(COLOURS, TEXTS)
        for scheme in ("light", "dark")
    )

    for (name, *shown), (_, *dark_shown) in zip(light, dark, strict=True):
        ink, back, dark_ink, dark_back = (colour(said) for said in (*shown, *dark_shown))
        assert ink != dark_ink, name
        assert back != dark_back, name
        assert contrast(ink, back) >= 4.5, name
        assert contrast(dark_ink, dark_back) >= 4.5, name
        assert luminance(back) > 0.5 > luminance(dark_back), name


def colour(said: str) -> Colour:
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", said)
    assert found is not None, said
    red, green, blue = found.groups()
    return int(red), int(green), int(blue)
