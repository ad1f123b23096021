"""Reports as HTML, Markdown and JSON: complete, without markup from the data, and whole if values are missing."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from pipeline.report import blocks, formats, page, plots, render
from pipeline.report.model import Changes, ConfusionMatrix, Histogram, Interval, to_json
from tests.support import reports

VOID = {"meta", "link", "input", "br"}
SHAPES = {"path", "use", "rect", "line"}

INTERVAL = dict.fromkeys(("low", "high", "level", "units", "method", "unit"))
COUNTS = dict.fromkeys(("hits", "substitutions", "deletions", "insertions", "reference", "errors", "rate"))
HISTOGRAM = {"edges": [None], "counts": [None]}
COVERAGE = dict.fromkeys(("rows", "scored", "no_reference", "failed", "share"))
HEADLINE = {"metric": None, "rate": None, "interval": INTERVAL, "counts": COUNTS}
RUN = {
    **dict.fromkeys(
        ("uri", "status", "started", "finished", "wall_s", "audio_s", "skipped_s", "compute_s", "rtfx", "compute_rtfx")
    ),
    **dict.fromkeys(("utterances", "errors", "chunks")),
    "engines": [dict.fromkeys(("engine", "transcripts"))],
    "warnings": [None],
    "attempts": None,
    "starts": [None],
    "cost": dict.fromkeys(("per_hour", "currency", "total", "per_audio_hour")),
    "predicted_s": None,
    "decoding": None,
}
PROBLEM = {"count": None, "examples": [None]}
CONFUSION = {"reference": None, "hypothesis": None, "count": None, "examples": [None]}
CHANGED_TEXT = {"text": None, "errors": None, "alignment": [[None]]}
CHANGED = {
    **dict.fromkeys(("utt_id", "duration_s", "reference", "difference")),
    "here": CHANGED_TEXT,
    "baseline": CHANGED_TEXT,
}
BIN = dict.fromkeys(("low", "high", "count", "confidence", "accuracy"))
FORMAT_1 = {
    **dict.fromkeys(("format", "title", "generated", "version")),
    "run": RUN,
    "coverage": COVERAGE,
    "scoring": dict.fromkeys(("normalizer", "references", "compounds", "unit", "level")),
    "headline": [HEADLINE],
    "reference_problems": {"missing": PROBLEM, "unknown": PROBLEM, "duplicate": {"count": None, "examples": None}},
    "distribution": HISTOGRAM,
    "groups": [
        {
            **dict.fromkeys(("by", "ordered", "unit", "total", "shown")),
            "groups": [
                {
                    **dict.fromkeys(("key", "utterances", "audio_s")),
                    **dict.fromkeys(("words", "chars", "sentences"), COUNTS),
                    "interval": INTERVAL,
                }
            ],
            "unscored": None,
        }
    ],
    "confidence": {
        "bins": [dict.fromkeys(("low", "high", "utterances", "confidence", "accuracy"))],
        **dict.fromkeys(("ece", "risk_area")),
        "risk_curve": [[None]],
    },
    "confusions": {
        **dict.fromkeys(("sampled", "of")),
        **{key: [CONFUSION] for key in ("substitutions", "deletions", "insertions")},
    },
    "worst": {
        **dict.fromkeys(("shown", "of")),
        "rows": [
            {
                **dict.fromkeys(("utt_id", "uri", "start_s", "duration_s", "speaker", "confidence", "reference")),
                "text": None,
                "counts": COUNTS,
                "alignment": [[None]],
                "clip": dict.fromkeys(("source", "seconds")),
            }
        ],
        "listening": {**dict.fromkeys(("mode", "wanted", "playable")), "left_out": {}},
    },
    "classification": [
        {
            **dict.fromkeys(("task", "scored", "no_reference", "unknown_label", "other_label", "accuracy")),
            "interval": INTERVAL,
            **dict.fromkeys(("balanced_accuracy", "macro_f1", "micro_f1")),
            "classes": [dict.fromkeys(("label", "precision", "recall", "f1", "support", "predicted", "auroc"))],
            "confusion": {"labels": [None], "predicted": [None], "matrix": [[None]]},
            "calibration": {"ece": None, "bins": [BIN], "plotted": [BIN]},
        }
    ],
    "errors": [
        {
            **dict.fromkeys(("code", "count", "share")),
            "examples": [dict.fromkeys(("utt_id", "uri", "message"))],
            "messages": [dict.fromkeys(("message", "count"))],
        }
    ],
    "corpus": {
        **dict.fromkeys(("hours", "utterances", "sampled", "of", "speech_share", "words", "words_per_second")),
        "durations": HISTOGRAM,
        "confidences": HISTOGRAM,
        "empty_texts": None,
        "labels": [
            {
                **dict.fromkeys(("task", "rows", "others")),
                "labels": [dict.fromkeys(("label", "count", "share", "mean_score", "others"))],
            }
        ],
        "by_tag": [{"tag": None, "values": [dict.fromkeys(("value", "utterances", "hours", "failed"))]}],
        "samples": [dict.fromkeys(("utt_id", "text", "confidence", "duration_s"))],
    },
    "lineage": {
        "model": None,
        "classifiers": [None],
        "inputs": [None],
        "fingerprint": {"model": None, "inputs": {"rows": None, "plan": None}},
        "config": dict.fromkeys(("chunk_s", "max_segment_s", "precision", "vad", "strict")),
        "versions": dict.fromkeys(("sewd-pipeline", "torch", "ray")),
    },
    "gate": [dict.fromkeys(("condition", "value", "limit", "failed"))],
    "comparison": {
        "baseline": {
            **dict.fromkeys(("uri", "title", "model")),
            "headline": [HEADLINE],
            "coverage": COVERAGE,
            "run": RUN,
        },
        "paired": dict.fromkeys(("utterances", "only_here", "only_baseline", "reference_differs")),
        "metrics": [
            {
                **dict.fromkeys(("metric", "here", "baseline", "difference")),
                "interval": INTERVAL,
                "probability_of_improvement": None,
            }
        ],
        "tests": [dict.fromkeys(("name", "statistic", "p_value", "n", "detail"))],
        "changes": dict.fromkeys(("better", "worse", "same")),
        "better": [CHANGED],
        "worse": [CHANGED],
    },
    "recordings": {
        "scored": None,
        "unscored": {"count": None, "examples": [None]},
        **dict.fromkeys(("reference_words", "scored_words", "coverage", "collar_s")),
        "rows": [{"name": None, "speaker": None, "words": COUNTS, "timed": COUNTS}],
    },
}
"""The keys of the JSON report, in their order; a list has the keys of its first item."""


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
def test_pages_are_well_formed_with_unique_ids(make):
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
        for text_of_interval in ("95 %: 4.09–5.15 % over 60 speakers", "95 %: 1.50–1.92 %", "95 %: 36.0–40.2 %"):
            assert text_of_interval in text
        assert "46,200 errors in 1,000,000 words" in text
        assert "98,400 of 100,000 utterances scored (98.4 %); 1,200 without reference, 400 failed" in text
        assert "−0.42 pp against the baseline" in text


def test_a_headline_without_interval_states_the_reason():
    report = reports.full()
    headline = [replace(each, interval=None) for each in report.headline]
    report = replace(report, headline=headline, groups=[], classification=[], comparison=None)

    assert "no interval: fewer than 10 speakers" in Parsed(render.html(report)).text


def test_several_kinds_of_units_have_a_plural():
    report = reports.full()
    wer = replace(report.headline[0], interval=Interval(0.04, 0.05, 0.95, 12, "t", "speaker or utterance"))
    scoring = replace(report.scoring, unit="speaker or utterance")
    report = replace(report, headline=[wer, replace(report.headline[1], interval=None)], scoring=scoring)

    text = Parsed(render.html(report)).text
    assert "over 12 speakers or utterances" in text
    assert "fewer than 10 speakers or utterances" in text


def test_the_comparison_names_both_runs():
    report = reports.full()
    for text in (Parsed(page_of(reports.full)).text, render.markdown(report)):
        assert re.search(r"a: this run:?\s*s3://runs/dev-2026-11", text)
        assert re.search(r"b: baseline:?\s*s3://runs/baseline", text)


def test_the_comparison_of_equal_runs_claims_no_improvement():
    report = reports.full()
    metrics = [
        replace(each, baseline=each.here, difference=0.0, interval=None, probability_of_improvement=0.5)
        for each in report.comparison.metrics
    ]
    comparison = replace(report.comparison, metrics=metrics, changes=Changes(0, 0, 98_390), better=[], worse=[])
    text = render.markdown(replace(report, comparison=comparison))

    section = text[text.index("## Comparison with the baseline") : text.index("## Speed")]
    assert "No difference: both runs have the same error rates" in section
    assert "0.500" not in section
    assert "Tests of the difference" not in section
    assert "Changed utterances" not in section
    assert "same as the baseline" in text[: text.index("##")]


def test_differences_without_intervals_state_the_reason():
    report = reports.full()
    metrics = [replace(each, interval=None, probability_of_improvement=None) for each in report.comparison.metrics]
    text = render.markdown(replace(report, comparison=replace(report.comparison, metrics=metrics)))

    assert "No intervals: they need 10 speakers, none of them with more than half of the reference" in text


def test_pages_without_references_begin_with_the_corpus():
    text = page_of(reports.unlabeled)

    assert "198\u00a0h" in text
    assert "0 of 100,000 utterances scored" in Parsed(text).text
    order = re.findall(r'<section id="(\w+)"', text)
    assert order == ["corpus", "speed", "failures", "lineage"]
    assert "random sample: 50,000 of 100,000 utterances" in Parsed(text).text


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_pages_of_unfinished_runs_have_a_banner(status):
    report = replace(reports.unlabeled(), run=reports.run(status))

    assert 'class="banner"' in render.html(report)
    assert 'class="banner"' not in page_of(reports.unlabeled)


def test_data_never_becomes_markup(full):
    plain = Parsed(friendly())
    hostile = Parsed(full)

    def kinds(parsed):
        return {tag for tag, _ in parsed.tags}, {name for _, attrs in parsed.tags for name in attrs}

    assert kinds(hostile) == kinds(plain)
    assert "img" not in kinds(hostile)[0]
    assert sum(tag == "script" for tag, _ in hostile.tags) == 1
    for text in reports.HOSTILE:
        assert " ".join(text.split()) in hostile.text, text


@pytest.mark.parametrize("write", [render.html, render.markdown])
def test_control_characters_of_the_data_are_not_written(write):
    report = replace(reports.full(), title="\x1b[2J\x00 title \x9b31m\x07")
    text = write(report)
    assert " title " in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_pages_refer_to_no_external_resource(full):
    for tag, attrs in Parsed(full).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name, "#")
            assert value.startswith("#") or (tag, value[:16]) in {("link", "data:,"), ("audio", "data:audio/ogg;b")}, (
                tag
            )
        assert not [name for name in attrs if name.startswith("on")]
        assert "url(" not in attrs.get("style", "").replace("url(#", "")
    style = full[full.index("<style>") : full.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_content_security_policy_allows_only_the_script_of_the_page(full):
    script = full[full.index("<script>") + len("<script>") : full.index("</script>", full.index('"use strict"'))]

    policy = re.search(r'Policy" content="([^"]*)"', full)[1]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert unescape(policy).count(render._sha256(script)) == 1


def test_transcripts_have_an_automatic_direction_and_no_language(full):
    cells = [attrs for tag, attrs in Parsed(full).tags if tag == "td" and attrs.get("class") in {"a", "s"}]

    assert cells
    assert {(attrs["dir"], attrs["lang"]) for attrs in cells} == {("auto", "")}


def test_plots_have_a_name_real_text_and_the_colours_of_the_page(full):
    for svg in re.findall(r"<svg.*?</svg>", full, re.DOTALL):
        assert re.match(r'<svg class="plot" viewBox="0 0 420 \d+" role="img" aria-label="[^"]+">', svg)
        assert "<text" in svg
        assert not re.search(r"(fill|stroke): #", svg)
        assert "font:" not in svg
        assert "font-family" not in svg
        assert set(re.findall(r"<(\w+)", svg)) <= {"svg", "g", "defs", "clipPath", "text", *SHAPES}


def test_cut_tables_and_plots_report_how_much_is_shown(full):
    text = Parsed(full).text

    assert f"{40 + len(reports.HOSTILE)} of 37,490 shown" in text
    assert "10 of 5,214 shown" in text
    assert "30 of 60 shown, those with the most reference words" in text


def test_large_confusion_matrices_are_cut_to_the_most_frequent_labels():
    size = 100
    matrix = [[1000 - i if i == j else 0 for j in range(size)] for i in range(size)]
    labels = [f"label{i}" for i in range(size)]
    task = replace(reports.full().classification[0], confusion=ConfusionMatrix(labels, labels, matrix), classes=[])

    text = Parsed(render.html(replace(reports.unlabeled(), classification=[task]))).text
    assert "40 of 100 shown" in text
    assert "label39" in text
    assert "label40" not in text


def test_the_largest_report_is_under_3_mb():
    report = reports.full(rows=500, groups=500)
    changed = {name: getattr(report.comparison, name) * 10 for name in ("better", "worse")}
    report = replace(report, groups=report.groups * 3, comparison=replace(report.comparison, **changed))

    assert len(render.html(report).encode()) < 3_000_000


def test_rendering_is_deterministic(full):
    assert render.html(reports.full()) == full


def test_lone_surrogates_of_file_names_are_replaced():
    report = reports.unlabeled()
    report = replace(report, lineage=replace(report.lineage, inputs=["bad\udcffname.wav"]))

    for text in (render.html(report), render.markdown(report)):
        assert "bad?name.wav" in text
        text.encode()


@pytest.mark.parametrize("make", [reports.full, reports.unlabeled, reports.empty, reports.nulls])
def test_markdown_tables_are_well_formed(make):
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


def test_data_never_becomes_markdown_syntax():
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
        (formats.duration(3.21), "3.2 s"),
        (formats.duration(59.99), "1 min 00 s"),
        (formats.duration(751), "12 min 31 s"),
        (formats.duration(3599.9), "1 h 00 min"),
        (formats.duration(11520), "3 h 12 min"),
        (formats.duration(712300), "198 h"),
        (formats.duration(61, formats.SPACE), "1 min 01 s"),
        (formats.duration(None), "–"),
        (formats.percent_range(0.041, 0.052), "4.10–5.20 %"),
        (formats.plural(1, "speaker or utterance"), "1 speaker or utterance"),
        (formats.plural(12, "speaker or utterance"), "12 speakers or utterances"),
        (formats.moment("2026-11-22T19:00:00Z"), "2026-11-22 19:00:00 UTC"),
    ],
)
def test_formats(written, expected):
    assert written.replace("\u00a0", " ") == expected


def test_alignments_as_text():
    runs = [["equal", "the", "the"], ["substitute", "cat", "hat"], ["delete", "sat", ""], ["insert", "", "down"]]

    assert render.alignment_text(runs) == "the [cat › hat] [−sat] [+down]"


def interval_plot(title, *estimates, line=None):
    return plots.draw(blocks.IntervalPlot(title, estimates, line))


def test_labels_of_plots_are_shortened_and_escaped():
    svg = interval_plot('a "title" <b>', blocks.Estimate("$x$ <script>\n" + "y" * 99, 0.1, None, None))

    assert 'aria-label="a &quot;title&quot; &lt;b&gt;"' in svg
    assert "$x$ &lt;script&gt;" in svg
    assert "y" * 20 not in svg


def test_the_axis_of_rates_begins_at_zero():
    estimates = blocks.Estimate("a", 0.0, 0.0, 0.0), blocks.Estimate("b", 0.0, None, None)
    svg = interval_plot("zeros", *estimates, line=0.0)

    assert "−" not in svg
    assert ">0.0 %<" in svg


def test_only_drawing_loads_matplotlib():
    script = """
import sys
from pipeline.report import content, render
from tests.support import reports
render.markdown(reports.full()), render.json_text(reports.full())
assert "matplotlib" not in sys.modules
render.html(reports.full())
assert "matplotlib" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_json_report_has_the_keys_of_its_format():
    """Renaming or moving a field of the model changes the JSON report, which has a format version."""

    def keys(value):
        if isinstance(value, dict):
            return {key: keys(item) for key, item in value.items()}
        return [keys(value[0])] if isinstance(value, list) and value else None

    report = json.loads(render.json_text(reports.full(hostile=False)))
    assert report == to_json(reports.full(hostile=False))
    assert json.dumps(keys(report)) == json.dumps(FORMAT_1)


def test_pages_begin_with_the_doctype(full):
    assert full.startswith("<!doctype html>")


def test_bins_without_utterances_are_not_rows_of_a_table():
    report = replace(reports.full(), distribution=Histogram([*(k / 20 for k in range(21)), None], [7, *[0] * 19, 2]))
    text = render.markdown(report)
    section = text[text.index("## Distribution of errors") : text.index("## Error rates by group")]
    assert [line.split(" | ")[0] for line in section.splitlines() if re.match(r"\| \d", line)] == [
        "| 0 % – 5 %",
        "| 100 % – ∞",
    ]


@pytest.mark.parametrize("make", [reports.full, reports.unlabeled])
def test_no_duration_is_a_fraction_of_an_hour(make):
    report = make()
    tags = [replace(table, values=[replace(v, hours=0.002) for v in table.values]) for table in report.corpus.by_tag]
    report = replace(report, corpus=replace(report.corpus, hours=0.004, by_tag=tags))
    text = render.markdown(report).replace("\u00a0", " ")
    assert "14.4 s" in text
    assert "7.2 s" in text
    assert not re.search(r"\b0\.0\d? h\b", text)
    assert "Hours" not in text


def dots(plot):
    """Centres of the dots of a reliability plot."""
    svg = plots.draw(plot)
    return [(float(x), float(y)) for x, y in re.findall(r'<use href="[^"]*" x="([\d.]+)" y="([\d.]+)"', svg)]


@pytest.mark.parametrize(
    "bins",
    [
        [(0.83 + k * 0.0185, 0.4 + k * 0.065) for k in range(10)],
        [(0.97 + k * 0.003, 0.9 + k * 0.01) for k in range(10)],
        [(0.99 + k * 0.001, 0.98 + k * 0.002) for k in range(10)],
        [(0.9 + k * 0.01, 1.0) for k in range(10)],
        [(0.05 * k + 0.5, 0.05 * k + 0.3) for k in range(10)],
    ],
    ids=["confident", "very confident", "nearly certain", "always right", "spread"],
)
def test_the_dots_of_a_confidence_plot_are_apart(bins):
    plot = blocks.ReliabilityPlot("p", [blocks.PlottedBin(x, y, 10) for x, y in bins], "x", "y")
    centres = dots(plot)[-len(bins) :]
    assert len(centres) == len(bins)
    nearest = min(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a in centres for b in centres if a is not b)
    assert nearest > 10  # their diameter is about 11
