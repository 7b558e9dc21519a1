"""The page as text: what is there, what is left out, and that nothing comes from elsewhere."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from sample_report import (
    failing_comparison,
    ladder,
    measures,
    passing_comparison,
    sample_report,
    semantic_checks,
)

from compiler.contracts.comparison import Comparison, Finding, Report, SemanticCheck, TokenStrip
from compiler.contracts.errors import RunError
from compiler.report import write_report
from compiler.report.page import render

NAN, INFINITE = float("nan"), float("inf")
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Elements, headings and text of a page; the tags must nest."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[tuple[int, str]] = []
        self.data: list[tuple[str, str]] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append((self.open[-1] if self.open else "", data))
        if any(re.fullmatch("h[1-6]", tag) for tag in self.open):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    @property
    def sections(self) -> list[str]:
        return [" ".join(text.split()) for level, text in self.headings if level > 1]

    @property
    def text(self) -> str:
        """What is read, outside the drawings."""
        shown = (said for tag, said in self.data if tag not in ("style", "title", "desc", "text"))
        return " ".join(" ".join(shown).split())

    def texts(self, tag: str) -> list[str]:
        return [said for one, said in self.data if one == tag]


def page_of(*comparisons: Comparison, title: str = "A report") -> Page:
    return Page(render(Report(comparisons=comparisons), title=title))


def test_every_part_is_there_in_order() -> None:
    page = Page(render(sample_report(), title="SmolLM2"))
    parts = [
        "Figures",
        "Error by layer",
        "Outside the layers",
        "Local error of every tap",
        "Greedy tokens, step by step",
        "Spread over the steps",
    ]

    assert page.headings[0] == (1, "SmolLM2")
    assert page.sections == [
        "onnxruntime against torch \N{BALLOT X} failed",
        "Findings",
        *parts,
        "tvm_llvm against torch \N{CHECK MARK} passed",
        *parts,
        "Where the whole difference comes from",
        "Semantic checks",
        "Environment",
    ]
    # By candidate: layers, taps, tokens and three spreads; then the ladder.
    assert page.attributes.count(("svg", "role", "img")) == 2 * 6 + 1
    levels = [level for level, _ in page.headings]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_figures_are_said() -> None:
    text = page_of(failing_comparison()).text

    assert "onnxruntime failed, with 3 findings (1 wrong by itself, 2 outside a limit)." in text
    assert "First token (top-1) 97.87% at least 100% \N{BALLOT X} outside" in text
    assert "first apart in prompt 3, step 9: 318 for 4211" in text
    assert "Perplexity 14.3369 reference 14.2031, +0.942%" in text
    said = "at most 0.001 \N{BALLOT X} outside layer 17, down, in prompt2/prefill1"
    assert f"Largest local tap error 0.0023 {said}" in text
    assert "max_abs: 0.0042 would pass" in text
    assert "Taps 513 1 of them wrong, 150 recomputed" in text


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"taps": ()}, {"Error by layer", "Outside the layers", "Local error of every tap"}),
        ({"level": "layer"}, {"Local error of every tap"}),
        ({"steps": ()}, {"Spread over the steps"}),
        ({"strips": ()}, {"Greedy tokens, step by step"}),
        ({"findings": ()}, {"Findings"}),
    ],
    ids=["no taps", "level layer", "no steps", "no strips", "no findings"],
)
def test_what_was_not_measured_is_left_out(change: dict[str, object], gone: set[str]) -> None:
    whole = failing_comparison()

    full = set(page_of(whole).sections)
    less = set(page_of(replace(whole, **change)).sections)
    assert {part for part in full - less if not part.startswith("onnxruntime")} == gone


def test_nothing_compared_has_not_passed() -> None:
    empty = Comparison("torch", "tvm_llvm", "tap")

    page = page_of(empty)
    assert page.sections == ["tvm_llvm against torch \N{BALLOT X} failed"]
    assert page.tags["table"] == page.tags["svg"] == page.tags["figure"] == 0
    assert "tvm_llvm failed: nothing was compared." in page.text


def test_an_empty_report_has_no_verdict() -> None:
    page = Page(render(Report(), title="Nothing"))

    assert page.sections == []
    assert "No verdict No candidate was compared, and nothing was checked." in page.text


def test_a_failed_semantic_check_fails_the_report() -> None:
    checks = semantic_checks()
    comparisons = (passing_comparison(level="end-to-end"),)

    failed = Page(render(Report(comparisons, semantic={"tvm_llvm": checks}), title="t")).text
    held = Page(render(Report(comparisons, semantic={"tvm_llvm": checks[:4]}), title="t")).text
    assert "Failed tvm_llvm agrees with torch; no findings." in failed
    assert "1 semantic check failed, 4 held." in failed
    assert "padding \N{BALLOT X} fail 0.0132 1e-5 token 37, layer 4" in failed
    assert "batch-rows \N{EN DASH} not applicable the bundle has a batch of one" in failed
    assert "Passed tvm_llvm agrees with torch; no findings. 4 semantic checks held." in held


def test_many_findings_are_folded() -> None:
    findings = tuple(Finding("nan", f"place{i}", "said") for i in range(15))

    page = page_of(replace(passing_comparison(), findings=findings))
    assert "3 more" in page.texts("summary")
    assert {f"place{i}" for i in range(15)} <= set(page.texts("code"))


def hostile_report() -> Report:
    whole = failing_comparison(layers=2)
    taps = tuple(replace(tap, call=HOSTILE) for tap in whole.taps)
    taps += (replace(taps[3], point=HOSTILE),)
    steps = tuple(replace(step, name=HOSTILE) for step in whole.steps)
    strip = TokenStrip(HOSTILE, 3, (1, 2), (1, 3), ())
    comparison = replace(
        whole,
        reference=HOSTILE,
        candidate=HOSTILE,
        taps=taps,
        steps=steps,
        strips=(strip,),
        findings=(Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
        limits={HOSTILE: 1.0, f"max_rel_{HOSTILE}": 1e-3},
    )
    rungs = tuple(replace(step, name=HOSTILE) for step in ladder().steps)
    steps_up = replace(
        ladder(), reference=HOSTILE, steps=rungs, largest=HOSTILE, point=HOSTILE, said=HOSTILE
    )
    checks = (SemanticCheck(HOSTILE, "fail", HOSTILE),)
    return Report((comparison, comparison), steps_up, {HOSTILE: checks}, {HOSTILE: HOSTILE})


def test_names_are_text_whatever_they_hold() -> None:
    page = Page(render(hostile_report(), title=HOSTILE))

    assert page.tags["script"] == page.tags["img"] == 0
    assert page.texts("title")[0] == page.texts("h1")[0] == HOSTILE
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}
    assert HOSTILE in page.texts("code")
    assert HOSTILE in page.texts("desc")[-1]


def test_nothing_comes_from_elsewhere() -> None:
    markup = render(sample_report(), title="A report")
    page = Page(markup)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

    assert ("meta", "content", policy) in page.attributes
    assert ("html", "lang", "en") in page.attributes
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", markup)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert references == ["#candidate-1", "#candidate-2"]
    targets = {
        f"#{value}" for tag, name, value in page.attributes if (tag, name) == ("section", "id")
    }
    assert targets == set(references)
    assert len(markup) < 400_000


def test_equal_reports_give_equal_bytes(tmp_path: Path) -> None:
    report = sample_report()
    turned = dict(reversed(report.environment.items()))

    write_report(report, tmp_path / "one.html", title="A report")
    write_report(replace(report, environment=turned), tmp_path / "two.html", title="A report")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_what_is_no_number_is_said_in_words() -> None:
    whole = passing_comparison(layers=4)
    broken = measures(1e-6)
    broken = replace(broken, max_abs=NAN, max_rel=NAN, cosine=NAN, snr_db=-INFINITE)
    steps = (replace(whole.steps[0], measures=broken, kl=INFINITE, margin=NAN), *whole.steps[1:])
    taps = tuple(
        replace(tap, status="nan", accumulated=broken, local=broken) if tap.layer == 2 else tap
        for tap in whole.taps
    )

    text = page_of(
        replace(
            whole,
            steps=steps,
            taps=taps,
            top1_agreement=NAN,
            perplexity=(14.0, INFINITE),
            limits={"max_abs": 1.0, "min_top1": 1.0},
        )
    ).text
    assert "First token (top-1) not a number at least 100% \N{BALLOT X} outside" in text
    assert "Largest absolute difference not a number at most 1 \N{BALLOT X} outside" in text
    assert "Least signal-to-noise ratio, dB minus infinite" in text
    assert "Largest KL divergence, nats infinite" in text
    assert "Perplexity infinite reference 14" in text
    assert "not finite" in text
    assert not re.search(r"\b(nan|inf)\b", text.replace("layer 2, ", "").replace(": nan", ""))


def test_all_values_at_once_may_be_odd() -> None:
    whole = passing_comparison(layers=3)
    for value in (0.0, NAN, INFINITE, 5e-324, 1.7e308):
        odd = replace(measures(1e-6), max_abs=value, max_rel=value, cosine=value, snr_db=value)
        steps = tuple(
            replace(step, measures=odd, kl=value, margin=value, top5_overlap=value)
            for step in whole.steps
        )
        taps = tuple(replace(tap, accumulated=odd, local=odd) for tap in whole.taps)
        rungs = tuple(replace(step, max_abs=value, rms=value) for step in ladder().steps)
        comparison = replace(whole, steps=steps, taps=taps, limits={"max_rel": value})
        report = Report((comparison,), replace(ladder(), steps=rungs))

        assert Page(render(report, title="odd")).tags["svg"] > 6, value


def test_a_file_is_replaced_and_a_link_followed(tmp_path: Path) -> None:
    place, link = tmp_path / "report.html", tmp_path / "latest.html"
    place.write_text("old")
    link.symlink_to(place)

    write_report(sample_report(), link, title="A report")
    assert link.is_symlink()
    assert place.read_bytes().startswith(b"<!doctype html>\n")
    assert sorted(tmp_path.iterdir()) == [link, place]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/report.html", "No such file or directory"),
        ("file/report.html", "Not a directory"),
        ("folder", "what is there is not a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    with pytest.raises(RunError, match=message) as caught:
        write_report(sample_report(), tmp_path / name, title="A report")
    assert caught.value.where == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_write_that_fails_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report.html"
    place.write_text("old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RunError, match="No space left on device"):
        write_report(sample_report(), place, title="A report")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_name_that_is_no_unicode_does_not_lose_the_report(tmp_path: Path) -> None:
    place = tmp_path / "report.html"

    write_report(Report(environment={"file": "a\udcff"}), place, title="A report")
    assert "<td>a?</td>" in place.read_text(encoding="utf-8")
