"""Reports as HTML and Markdown: all is said, no text of theirs becomes markup, and nothing that is missing breaks."""

from __future__ import annotations

import functools
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from pipeline.report import blocks, formats, page, plots, render
from tests.support import reports

VOID = {"meta", "link", "input", "br"}
SHAPES = {"path", "use", "rect", "line"}


class Parsed(HTMLParser):
    """Tags with their attributes, ids, the text of elements, and whether each one is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@functools.cache
def page_of(make):
    return render.html(make())


@functools.cache
def friendly():
    return render.html(reports.full(hostile=False))


@pytest.fixture
def full():
    return page_of(reports.full)


@pytest.mark.parametrize("make", [reports.full, reports.unlabeled, reports.empty, reports.nulls])
def test_pages_are_well_formed_and_name_nothing_twice(make):
    parsed = Parsed(page_of(make))

    assert not parsed.open
    assert len(parsed.ids) == len(set(parsed.ids))
    names = [
        value
        for _, attrs in parsed.tags
        for name, value in attrs.items()
        if name in {"aria-labelledby", "aria-controls"}
    ]
    assert set(names) <= set(parsed.ids)
    assert "None" not in parsed.text
    assert "nan" not in parsed.text.lower().split()


def test_every_number_of_the_headline_is_shown():
    report = reports.full()
    for text in (Parsed(page_of(reports.full)).text, unescape(render.markdown(report))):
        text = text.replace("\u00a0", " ")  # noqa: PLW2901
        for value in ("4.62 %", "1.71 %", "38.1 %", "4.59 %", "7.24 %", "88."):
            assert value in text
        for interval in ("95 %: 4.09–5.15 % over 60 speakers", "95 %: 1.50–1.92 %", "95 %: 36.0–40.2 %"):
            assert interval in text
        assert "46,200 errors in 1,000,000 words" in text
        assert "98,400 of 100,000 utterances scored (98.4 %); 1,200 without reference, 400 failed" in text
        assert "−0.42 pp against the baseline" in text


def test_a_headline_without_interval_says_why():
    report = reports.full()
    report["headline"] = [each | {"interval": None} for each in report["headline"]]
    report |= {"groups": [], "classification": [], "comparison": None}

    assert "no interval: fewer than 10 speakers" in Parsed(render.html(report)).text


def test_corpora_without_references_lead_with_the_corpus():
    text = page_of(reports.unlabeled)

    assert "197.9\u00a0h" in text
    assert "0 of 100,000 utterances scored" in Parsed(text).text
    order = re.findall(r'<section id="(\w+)"', text)
    assert order == ["corpus", "speed", "failures", "lineage"]


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_unfinished_runs_are_told_apart(status):
    report = reports.unlabeled()
    report["run"] = reports.run(status)

    assert 'class="banner"' in render.html(report)
    assert 'class="banner"' not in page_of(reports.unlabeled)


def test_text_of_the_report_is_never_markup(full):
    plain = Parsed(friendly())
    hostile = Parsed(full)

    def kinds(parsed):
        return {tag for tag, _ in parsed.tags}, {name for _, attrs in parsed.tags for name in attrs}

    assert kinds(hostile) == kinds(plain)
    assert "img" not in kinds(hostile)[0]
    assert sum(tag == "script" for tag, _ in hostile.tags) == 1
    for text in reports.HOSTILE:
        assert " ".join(text.split()) in hostile.text, text


def test_pages_ask_for_nothing_outside_themselves(full):
    for tag, attrs in Parsed(full).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name, "#")
            assert value.startswith("#") or (tag == "link" and value == "data:,"), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert "url(" not in attrs.get("style", "").replace("url(#", "")
    style = full[full.index("<style>") : full.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_names_the_one_script(full):
    script = full[full.index("<script>") + len("<script>") : full.index("</script>", full.index('"use strict"'))]

    policy = re.search(r'Policy" content="([^"]*)"', full)[1]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert unescape(policy).count(render._sha256(script)) == 1


def test_transcripts_find_their_own_direction_and_have_no_language(full):
    cells = [attrs for tag, attrs in Parsed(full).tags if tag == "td" and attrs.get("class") in {"a", "s"}]

    assert cells
    assert {(attrs["dir"], attrs["lang"]) for attrs in cells} == {("auto", "")}


def test_plots_have_a_name_the_colours_of_the_page_and_text(full):
    for svg in re.findall(r"<svg.*?</svg>", full, re.DOTALL):
        assert re.match(r'<svg class="plot" viewBox="0 0 420 \d+" role="img" aria-label="[^"]+">', svg)
        assert "<text" in svg
        assert not re.search(r"(fill|stroke): #", svg)
        assert "font:" not in svg
        assert "font-family" not in svg
        assert set(re.findall(r"<(\w+)", svg)) <= {"svg", "g", "defs", "clipPath", "text", *SHAPES}


def test_what_is_cut_says_how_much(full):
    text = Parsed(full).text

    assert f"{40 + len(reports.HOSTILE)} of 37,490 shown" in text
    assert "10 of 5,214 shown" in text
    assert "30 of 60 shown: those of most words" in text


def test_large_confusion_matrices_are_cut_to_the_commonest_labels():
    report = reports.unlabeled()
    size = 100
    matrix = [[1000 - i if i == j else 0 for j in range(size)] for i in range(size)]
    labels = [f"label{i}" for i in range(size)]
    task = reports.full()["classification"][0]
    report["classification"] = [
        task | {"confusion": {"labels": labels, "predicted": labels, "matrix": matrix}, "classes": []}
    ]

    text = Parsed(render.html(report)).text
    assert "40 of 100 shown" in text
    assert "label39" in text
    assert "label40" not in text


def test_the_largest_report_is_under_3_mb():
    report = reports.full(rows=500, groups=500)
    report["groups"] *= 3
    report["comparison"]["better"] *= 10
    report["comparison"]["worse"] *= 10

    assert len(render.html(report).encode()) < 3_000_000


def test_the_same_report_gives_the_same_bytes(full):
    assert render.html(reports.full()) == full


def test_lone_surrogates_of_file_names_can_be_written():
    report = reports.unlabeled()
    report["lineage"]["inputs"] = ["bad\udcffname.wav"]

    for text in (render.html(report), render.markdown(report)):
        assert "bad?name.wav" in text
        text.encode()


@pytest.mark.parametrize("make", [reports.full, reports.unlabeled, reports.empty, reports.nulls])
def test_tables_of_markdown_are_well_formed(make):
    lines = render.markdown(make()).split("\n")
    tables, cells = 0, 0
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            now = len(re.findall(r"(?<!\\)\|", line))
            if before.startswith("|"):
                assert now == cells, line
            else:
                tables += 1
            cells = now
    assert tables


def test_markdown_holds_no_markup_of_the_data():
    text = render.markdown(reports.full())

    assert not re.search(r"<\w|</", text)
    assert not re.search(r"(?<!\\)`", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "A" * 300 in text
    assert "שלום" in text


def test_html_and_markdown_have_the_same_sections_and_tables():
    report = reports.full(hostile=False)
    content = page.page(report)
    html, markdown = friendly(), render.markdown(report)

    for section in content.sections:
        assert f">{section.title}</h2>" in html
        assert f"\n## {section.title}\n" in markdown
        for part in section.parts:
            for block in part.blocks:
                if isinstance(block, blocks.Table):
                    assert f">{block.title}<" in html
                    assert f"**{block.title}**" in markdown


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.percent(None), "–"),
        (formats.percent(0.0), "0.0 %"),
        (formats.percent(0.0832), "8.32 %"),
        (formats.percent(0.123), "12.3 %"),
        (formats.percent(12.345), "1,234.5 %"),
        (formats.percent(-0.5), "−50.0 %"),
        (formats.points(0.0042), "+0.42 pp"),
        (formats.points(-0.0042), "−0.42 pp"),
        (formats.count(1234567), "1,234,567"),
        (formats.change(-3), "−3"),
        (formats.change(3), "+3"),
        (formats.probability(0.0004), "< 0.001"),
        (formats.probability(0.042), "0.042"),
        (formats.probability(0.9999), "> 0.999"),
        (formats.span(3.21), "3.2 s"),
        (formats.span(59.99), "1 min 0 s"),
        (formats.span(751), "12 min 31 s"),
        (formats.span(3599.9), "1 h 0 min"),
        (formats.span(11520), "3 h 12 min"),
        (formats.span(712300), "198 h"),
        (formats.moment("2026-11-22T19:00:00Z"), "2026-11-22 19:00:00 UTC"),
    ],
)
def test_formats(written, expected):
    assert written.replace("\u00a0", " ") == expected


def test_alignments_as_text():
    runs = [["equal", "the", "the"], ["substitute", "cat", "hat"], ["delete", "sat", ""], ["insert", "", "down"]]

    assert render.alignment_text(runs) == "the [cat › hat] [−sat] [+down]"


def test_labels_of_plots_are_cut_and_say_nothing_of_their_own():
    svg = plots.intervals('a "title" <b>', [plots.Estimate("$x$ <script>\n" + "y" * 99, 0.1, None, None)], line=None)

    assert 'aria-label="a &quot;title&quot; &lt;b&gt;"' in svg
    assert "$x$ &lt;script&gt;" in svg
    assert "y" * 20 not in svg


def test_rates_of_zero_are_drawn_on_an_axis_that_begins_there():
    svg = plots.intervals("zeros", [plots.Estimate("a", 0.0, 0.0, 0.0), plots.Estimate("b", 0.0, None, None)], line=0.0)

    assert "−" not in svg
    assert "0.00 %" in svg
