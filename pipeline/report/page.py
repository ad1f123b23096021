"""What the report says, in order, whatever it is written in.

`page` reads the report's dict and decides on words, columns and formats. `pipeline.report.render` writes what it returns as
HTML and as Markdown, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pipeline.report import plots
from pipeline.report.blocks import Block, Column, Facts, Figure, Matrix, Note, Page, Part, Score, Section, Table
from pipeline.report.formats import (
    NONE,
    SPACE,
    count,
    moment,
    number,
    percent,
    percent_range,
    plural,
    points,
    significant,
    span,
)

_PLOTTED: Final = 30  # groups of a plot that are still legible
_MATRIX: Final = 40  # labels of a confusion matrix that are still legible

Report = Mapping[str, Any]


def page(report: Report) -> Page:
    """The report's content.

    Raises:
        KeyError: the dict lacks a key of the report's format.
    """
    unlabeled = not report["headline"] and not report["classification"]
    sections = [
        Section(name, nav, title, parts)
        for name, nav, title, build in sorted(_SECTIONS, key=lambda each: unlabeled and each[0] != "corpus")
        if (parts := list(build(report)))
    ]
    return Page(
        title=report["title"] or report["run"]["uri"],
        about=[
            ("Run", report["run"]["uri"]),
            ("Model", report["lineage"]["model"]),
            ("Written", f"{moment(report['generated'])} by sewd-pipeline {report['version']}"),
        ],
        banner=_banner(report["run"]),
        scores=list(_scores(report)),
        coverage=_coverage(report),
        shares=[
            ("scored", report["coverage"]["scored"]),
            ("without reference", report["coverage"]["no_reference"]),
            ("failed", report["coverage"]["failed"]),
        ],
        sections=sections,
    )


def _level(report: Report) -> str:
    return f"{100 * report['scoring']['level']:g}{SPACE}%"


def _or_none(text: str | None) -> str:
    return "(none)" if text is None or text == "" else text


# --- Headline

_NAMES: Final = {
    "wer": "Word error rate",
    "cer": "Character error rate",
    "ser": "Sentence error rate",
    "mer": "Match error rate",
    "wil": "Word information lost",
}


def _scores(report: Report) -> Iterator[Score]:
    changes = {each["metric"]: _change(each) for each in (report["comparison"] or {"metrics": []})["metrics"]}
    any_interval = any(each["interval"] for each in report["headline"])
    units = report["scoring"]["unit"].replace(" or ", "s or ") + "s"
    missing = "no interval" if any_interval else f"no interval: fewer than 10 {units}"
    for each in report["headline"]:
        metric = each["metric"]
        yield Score(
            _NAMES.get(metric, metric.upper()),
            metric.upper(),
            percent(each["rate"]),
            _interval(each["interval"]) or missing,
            _counts(each["counts"], {"cer": "character", "ser": "sentence"}.get(metric, "word")),
            changes.get(metric, ""),
        )
    for task in report["classification"]:
        yield Score(
            f"Accuracy: {task['task']}",
            "ACC",
            percent(task["accuracy"]),
            _interval(task["interval"]) or "no interval",
            f"{count(task['scored'])} scored, {count(task['no_reference'])} without reference",
        )
    if not report["headline"] and not report["classification"]:
        corpus = report["corpus"]
        yield Score("Speech corpus", "hours", f"{number(corpus['hours'], 1)}{SPACE}h", "no references: nothing scored")
        yield Score("Utterances", "", count(corpus["utterances"]))
        yield Score("Words recognised", "", count(corpus["words"]))
        yield Score("Share of speech", "", percent(corpus["speech_share"]))


def _interval(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    return (
        f"{100 * interval['level']:g}{SPACE}%: {percent_range(interval)} "
        f"over {plural(interval['units'], interval['unit'])}"
    )


def _counts(counts: Mapping[str, Any] | None, unit: str) -> str:
    if counts is None:
        return ""
    return f"{count(counts['errors'])} errors in {plural(counts['reference'], unit)}"


def _change(metric: Mapping[str, Any]) -> str:
    return "" if metric["difference"] is None else f"{points(metric['difference'])} against the baseline"


def _coverage(report: Report) -> str:
    coverage = report["coverage"]
    share = "" if coverage["share"] is None else f" ({percent(coverage['share'], 1)})"
    return (
        f"Coverage: {count(coverage['scored'])} of {plural(coverage['rows'], 'utterance')} scored{share}; "
        f"{count(coverage['no_reference'])} without reference, {count(coverage['failed'])} failed."
    )


def _banner(run: Mapping[str, Any]) -> str:
    why = {
        "running": "is still going on",
        "stopped": "was stopped before its end",
        "failed": "failed before its end",
    }
    if run["status"] == "done":
        return ""
    return (
        f"This run {why.get(run['status'], 'is ' + run['status'])}. All figures are of what it had committed by then, "
        "which need not be like the rest."
    )


# --- Sections, each from the report to its parts; none, if there is nothing to say


def _comparison(report: Report) -> Iterator[Part]:
    comparison = report["comparison"]
    if comparison is None:
        return
    yield Part("", list(_comparison_facts(comparison)))
    metrics = [each for each in comparison["metrics"] if each["difference"] is not None]
    table = Table(
        "Paired differences: this run − baseline",
        [
            Column("Metric"),
            Column("This run", "rate"),
            Column("Baseline", "rate"),
            Column("Difference", "points"),
            Column(f"{_level(report)} from", "points"),
            Column("to", "points"),
            Column("Probability of improvement", "p"),
        ],
        [
            [
                each["metric"].upper(),
                each["here"],
                each["baseline"],
                each["difference"],
                (each["interval"] or {}).get("low"),
                (each["interval"] or {}).get("high"),
                each["probability_of_improvement"],
            ]
            for each in comparison["metrics"]
        ],
        wide=True,
    )
    units = next((each["interval"] for each in metrics if each["interval"]), None)
    note = (
        "No intervals: too few units, one that holds most of the reference, or none in which the runs differ."
        if units is None
        else f"Whiskers: {_level(report)} over {plural(units['units'], units['unit'])} ({units['method']}). "
        "Left of the dashed line this run is better."
    )
    estimates = [_estimate(each["metric"].upper(), each["difference"], each["interval"]) for each in metrics]
    title = "Differences by metric"
    figures = [Figure(title, plots.intervals(title, estimates, line=0, points=True), note)] if estimates else []
    yield Part("Differences", [*figures, table])
    if comparison["tests"]:
        yield Part(
            "",
            [
                Table(
                    "Tests of the difference",
                    [
                        Column("Test"),
                        Column("Statistic", "number"),
                        Column("p-value", "p"),
                        Column("n", "count"),
                        Column("What it asks"),
                    ],
                    [
                        [each["name"], each["statistic"], each["p_value"], each["n"], each["detail"]]
                        for each in comparison["tests"]
                    ],
                )
            ],
        )
    tables = [
        Table(
            title,
            [
                Column("Change", "change"),
                Column("Utterance", "name"),
                Column("This run", "alignment"),
                Column("Baseline", "alignment"),
                Column(f"Duration,{SPACE}s", "seconds"),
            ],
            [
                [
                    each["difference"],
                    each["utt_id"],
                    each["here"]["alignment"],
                    each["baseline"]["alignment"],
                    each["duration_s"],
                ]
                for each in comparison[key]
            ],
            of=comparison["changes"][key],
            wide=True,
        )
        for key, title in (("better", "Fewer errors than the baseline"), ("worse", "More errors than the baseline"))
        if comparison[key]
    ]
    if tables:
        yield Part("What changed", tables)


def _gate(report: Report) -> Iterator[Part]:
    """A condition is one to fail on: the gate is passed where it does not hold."""
    notes = []
    for each in report["gate"]:
        verdict = "Failed" if each["failed"] else "Passed"
        found = f"found {significant(each['value'])}, limit {significant(each['limit'])}"
        notes.append(Note(f"{verdict}: fail if {each['condition']}; {found}.", "bad" if each["failed"] else "good"))
    if notes:
        yield Part("", notes)


def _comparison_facts(comparison: Mapping[str, Any]) -> Iterator[Block]:
    baseline, paired, changes = comparison["baseline"], comparison["paired"], comparison["changes"]
    yield Facts(
        [
            ("Better here", count(changes["better"])),
            ("Worse here", count(changes["worse"])),
            ("As many errors", count(changes["same"])),
            ("Paired utterances", count(paired["utterances"])),
        ],
        prominent=True,
    )
    yield Facts(
        [
            ("Baseline", f"{baseline['title']} ({baseline['uri']})"),
            ("Baseline's model", baseline["model"]),
            ("Only in this run", count(paired["only_here"])),
            ("Only in the baseline", count(paired["only_baseline"])),
            ("Reference differs, not paired", count(paired["reference_differs"])),
            (
                "Baseline's coverage",
                f"{count(baseline['coverage']['scored'])} of {count(baseline['coverage']['rows'])} scored",
            ),
        ]
    )


def _distribution(report: Report) -> Iterator[Part]:
    if report["distribution"] is None or not sum(report["distribution"]["counts"]):
        return
    title = "Utterances by their own WER"
    yield Part(
        "", _beside(_histogram(title, report["distribution"], lambda edge: f"{100 * edge:g} %", "WER of the utterance"))
    )


def _histogram(title: str, data: Mapping[str, Any], text: Callable[[float], str], x_label: str) -> Figure:
    edges = ["∞" if edge is None else text(edge) for edge in data["edges"]]
    total = sum(data["counts"])
    rows = [
        [f"{low} – {high}", each, each / total if total else None]
        for low, high, each in zip(edges, edges[1:], data["counts"], strict=False)
    ]
    columns = [Column(x_label), Column("Utterances", "count", bar=True), Column("Share", "rate")]
    return Figure(
        title,
        plots.histogram(f"{title}, a histogram of {count(total)}", edges, data["counts"], x_label=x_label),
        data=Table(title, columns, rows, folded=True),
    )


def _beside(figure: Figure) -> Sequence[Block]:
    """A figure that stands alone has room for its numbers beside it."""
    numbers = [] if figure.data is None else [replace(figure.data, title="In numbers", folded=False)]
    return [replace(figure, data=None), *numbers]


def _groups(report: Report) -> Iterator[Part]:
    overall = next((each["rate"] for each in report["headline"] if each["metric"] == "wer"), None)
    for grouping in report["groups"]:
        groups = grouping["groups"]
        columns = [
            Column(_capital(grouping["by"])),
            Column("WER", "rate"),
            Column(f"{_level(report)} interval", "range"),
            Column("Words", "count"),
            Column("Sub", "count"),
            Column("Del", "count"),
            Column("Ins", "count"),
            Column("CER", "rate"),
            Column("SER", "rate"),
            Column("Utterances", "count"),
            Column(f"Audio,{SPACE}s", "count"),
        ]
        rows = [
            [
                _or_none(each["key"]),
                each["words"]["rate"],
                each["interval"],
                each["words"]["reference"],
                each["words"]["substitutions"],
                each["words"]["deletions"],
                each["words"]["insertions"],
                each["chars"]["rate"],
                each["sentences"]["rate"],
                each["utterances"],
                each["audio_s"],
            ]
            for each in groups
        ]
        table = Table(f"Counts by {grouping['by']}", columns, rows, of=grouping["total"], wide=True)
        yield Part(f"WER by {grouping['by']}", [*_group_figure(grouping, overall, _level(report)), table])


def _group_figure(grouping: Mapping[str, Any], overall: float | None, level: str) -> Iterator[Figure]:
    """The groups of most reference words, in their own order where they have one, else the worst first."""
    rated = [each for each in grouping["groups"] if each["words"]["rate"] is not None]
    if not rated:
        return
    largest = sorted(rated, key=lambda each: -each["words"]["reference"])[:_PLOTTED]
    if grouping["ordered"]:
        shown = [each for each in rated if each in largest]
    else:
        shown = sorted(largest, key=lambda each: -each["words"]["rate"])
    title = f"Rate and interval by {grouping['by']}"
    cut = (
        f" {count(len(shown))} of {count(grouping['total'])} shown: those of most words."
        if grouping["total"] > len(shown)
        else ""
    )
    whiskers = (
        f"Whiskers: {level} over {grouping['unit']}s." if any(each["interval"] for each in shown) else "No intervals."
    )
    line = "" if overall is None else f" Dashed: all, {percent(overall)}."
    estimates = [_estimate(_or_none(each["key"]), each["words"]["rate"], each["interval"]) for each in shown]
    yield Figure(title, plots.intervals(f"{title}.{cut}", estimates, line=overall), whiskers + line + cut)


def _estimate(label: str, value: float, interval: Mapping[str, Any] | None) -> plots.Estimate:
    low, high = (None, None) if interval is None else (interval["low"], interval["high"])
    return plots.Estimate(label, value, low, high)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _confidence(report: Report) -> Iterator[Part]:
    bins = [] if report["confidence"] is None else report["confidence"]["bins"]
    if any(each["utterances"] and each["confidence"] is not None for each in bins):
        yield Part(
            "",
            _beside(
                _reliability(
                    "Accuracy by confidence",
                    [{**each, "count": each["utterances"]} for each in bins],
                    "mean confidence of the utterances",
                    "1 − WER",
                    "On the dashed line confidence means what it says; below it the model is too sure of itself.",
                )
            ),
        )


def _reliability(title: str, bins: Sequence[Mapping[str, Any]], x_label: str, y_label: str, note: str) -> Figure:
    drawn = [
        plots.ReliabilityBin(each["confidence"], each["accuracy"], each["count"])
        for each in bins
        if each["count"] and each["confidence"] is not None and each["accuracy"] is not None
    ]
    table = Table(
        title,
        [
            Column("From", "number"),
            Column("To", "number"),
            Column("Utterances", "count", bar=True),
            Column("Mean confidence", "rate"),
            Column(_capital(y_label), "rate"),
        ],
        [[each["low"], each["high"], each["count"], each["confidence"], each["accuracy"]] for each in bins],
        folded=True,
    )
    svg = plots.reliability(title, drawn, x_label=x_label, y_label=y_label) if drawn else ""
    return Figure(title, svg, note, table)


def _confusions(report: Report) -> Iterator[Part]:
    confusions = report["confusions"]
    if confusions is None:
        return
    sides = {"reference": Column("Reference", "speech"), "hypothesis": Column("Recognised", "speech")}
    tables = [
        Table(
            title,
            [
                *(sides[side] for side in shown),
                Column("Count", "count", bar=True),
                Column("For example in", "name"),
            ],
            [
                [*(each[side] for side in shown), each["count"], ", ".join(each["examples"][:1])]
                for each in confusions[key]
            ],
        )
        for key, title, shown in (
            ("substitutions", "Substitutions", ("reference", "hypothesis")),
            ("deletions", "Deletions", ("reference",)),
            ("insertions", "Insertions", ("hypothesis",)),
        )
        if confusions[key]
    ]
    if tables:
        sampled = (
            f"Counted in {count(confusions['sampled'])} of {plural(confusions['of'], 'utterance')} with errors; "
            "the most frequent are shown."
        )
        yield Part("", [Note(sampled), *tables])


def _worst(report: Report) -> Iterator[Part]:
    worst = report["worst"]
    if worst is None or not worst["rows"]:
        return
    columns = [
        Column("Utterance", "name"),
        Column("Reference and recognised, aligned", "alignment"),
        Column("WER", "rate"),
        Column("Errors", "count"),
        Column("Words", "count"),
        Column("Confidence", "number"),
        Column(f"Duration,{SPACE}s", "seconds"),
        Column("Speaker", "name"),
        Column("Audio", "name"),
        Column(f"From,{SPACE}s", "seconds"),
    ]
    rows = [
        [
            each["utt_id"],
            each["alignment"],
            each["counts"]["rate"],
            each["counts"]["errors"],
            each["counts"]["reference"],
            each["confidence"],
            each["duration_s"],
            each["speaker"],
            each["uri"],
            each["start_s"],
        ]
        for each in worst["rows"]
    ]
    yield Part("", [Table("Utterances with most errors", columns, rows, of=worst["of"], wide=True)])


def _classification(report: Report) -> Iterator[Part]:
    for task in report["classification"]:
        yield Part(f"Task: {task['task']}", list(_task(task)))


def _task(task: Mapping[str, Any]) -> Iterator[Block]:
    yield Facts(
        [
            ("Accuracy", percent(task["accuracy"])),
            ("Balanced accuracy", percent(task["balanced_accuracy"])),
            ("Macro F1", percent(task["macro_f1"])),
            ("Micro F1", percent(task["micro_f1"])),
            ("Calibration error (ECE)", percent((task["calibration"] or {}).get("ece"))),
        ],
        prominent=True,
    )
    yield Note(
        f"Accuracy {_interval(task['interval']) or 'without interval'}. "
        f"{count(task['scored'])} scored, {count(task['no_reference'])} without reference; "
        f"{count(task['unknown_label'])} with a reference label that the model does not have, counted as wrong."
    )
    confusion = task["confusion"]
    if confusion is not None and confusion["labels"]:
        yield _matrix(task["task"], confusion)
    if task["calibration"] is not None and any(each["count"] for each in task["calibration"]["bins"]):
        yield _reliability(
            f"Calibration of {task['task']}",
            task["calibration"]["bins"],
            "mean score of the label",
            "accuracy",
            f"Expected calibration error: {percent(task['calibration']['ece'])}. Dashed: perfectly calibrated.",
        )
    yield Table(
        f"Classes of {task['task']}",
        [
            Column("Label"),
            Column("References", "count", bar=True),
            Column("Predicted", "count"),
            Column("Precision", "rate"),
            Column("Recall", "rate"),
            Column("F1", "rate"),
            Column("AUROC", "number"),
        ],
        [
            [each[key] for key in ("label", "support", "predicted", "precision", "recall", "f1", "auroc")]
            for each in task["classes"]
        ],
        wide=True,
    )


def _matrix(task: str, confusion: Mapping[str, Any]) -> Matrix:
    """The confusion matrix of the labels with most references, and of as many predicted ones."""
    labels, predicted, counts = confusion["labels"], confusion["predicted"], confusion["matrix"]
    rows = sorted(sorted(range(len(labels)), key=lambda i: -sum(counts[i]))[:_MATRIX])
    columns = sorted(sorted(range(len(predicted)), key=lambda j: -sum(row[j] for row in counts))[:_MATRIX])
    return Matrix(
        f"Confusion matrix of {task}",
        [_or_none(labels[i]) for i in rows],
        [_or_none(predicted[j]) for j in columns],
        [[counts[i][j] for j in columns] for i in rows],
        of=max(len(labels), len(predicted)),
    )


def _errors(report: Report) -> Iterator[Part]:
    errors = report["errors"]
    if errors:
        yield Part(
            "",
            [
                Table(
                    "Rows without a transcript, by code",
                    [Column("Code", "code"), Column("Utterances", "count", bar=True), Column("Share", "rate")],
                    [[each["code"], each["count"], each["share"]] for each in errors],
                ),
                Table(
                    "What the decoder said",
                    [Column("Code", "code"), Column("Message, numbers masked"), Column("Utterances", "count")],
                    [[each["code"], said["message"], said["count"]] for each in errors for said in each["messages"]],
                ),
                Table(
                    "Examples",
                    [Column("Code", "code"), Column("Utterance", "name"), Column("Audio", "name"), Column("Message")],
                    [
                        [each["code"], example["utt_id"], example["uri"], example["message"]]
                        for each in errors
                        for example in each["examples"]
                    ],
                    of=sum(each["count"] for each in errors),
                    wide=True,
                ),
            ],
        )
    problems = report["reference_problems"]
    if problems is not None and any(each["count"] for each in problems.values()):
        yield Part(
            "References that did not join",
            [
                Table(
                    "By problem",
                    [Column("Problem"), Column("Utterances", "count"), Column("For example", "name")],
                    [[name, each["count"], ", ".join(each["examples"])] for name, each in problems.items()],
                )
            ],
        )


def _corpus(report: Report) -> Iterator[Part]:
    corpus = report["corpus"]
    yield Part(
        "",
        [
            Facts(
                [
                    ("Audio", f"{number(corpus['hours'], 1)}{SPACE}h"),
                    ("Utterances", count(corpus["utterances"])),
                    ("Share of speech", percent(corpus["speech_share"], 1)),
                    ("Words", count(corpus["words"])),
                    ("Words per second", number(corpus["words_per_second"])),
                    ("Empty transcripts", count(corpus["empty_texts"])),
                ],
                prominent=True,
            )
        ],
    )
    histograms = [
        _histogram(title, data, text, x_label)
        for title, data, text, x_label in (
            ("Utterances by duration", corpus["durations"], lambda edge: f"{edge:g}", "seconds"),
            ("Utterances by confidence", corpus["confidences"], lambda edge: f"{edge:.2g}", "confidence"),
        )
        if data is not None and sum(data["counts"])
    ]
    if histograms:
        yield Part("", histograms)
    shares = [
        Table(
            f"Labels of {each['task']}",
            [
                Column("Label"),
                Column("Utterances", "count", bar=True),
                Column("Share", "rate"),
                Column("Mean score", "number"),
            ],
            [[_or_none(row["label"]), row["count"], row["share"], row["mean_score"]] for row in each["labels"]],
        )
        for each in corpus["labels"]
        if each["labels"]
    ] + [
        Table(
            f"By {each['tag']}",
            [
                Column(_capital(each["tag"])),
                Column("Utterances", "count", bar=True),
                Column("Hours", "number"),
                Column("Failed", "count"),
            ],
            [[_or_none(row["value"]), row["utterances"], row["hours"], row["failed"]] for row in each["values"]],
        )
        for each in corpus["by_tag"]
        if each["values"]
    ]
    if shares:
        yield Part("Labels and tags", shares)
    if corpus["samples"]:
        yield Part(
            "",
            [
                Table(
                    "A sample of the transcripts",
                    [
                        Column("Utterance", "name"),
                        Column("Recognised", "speech"),
                        Column("Confidence", "number"),
                        Column(f"Duration,{SPACE}s", "seconds"),
                    ],
                    [
                        [each["utt_id"], each["text"], each["confidence"], each["duration_s"]]
                        for each in corpus["samples"]
                    ],
                    of=corpus["utterances"],
                    wide=True,
                )
            ],
        )


def _speed(report: Report) -> Iterator[Part]:
    run, cost = report["run"], report["run"]["cost"]
    rtfx, compute = run["rtfx"], run["compute_rtfx"]
    prominent = [
        ("Faster than real time", NONE if rtfx is None else f"{number(rtfx, 1)}×"),
        ("Audio", span(run["audio_s"])),
        ("Wall time", span(run["wall_s"])),
        ("Compute", span(run["compute_s"])),
    ]
    if cost is not None:
        prominent.append(("Cost", f"{number(cost['total'])}{SPACE}{cost['currency']}"))
    details = [
        ("Audio per second of compute", NONE if compute is None else span(compute)),
        ("Utterances", f"{count(run['utterances'])}, and {count(run['errors'])} failed"),
        ("Chunks committed", count(run["chunks"])),
        ("Started", moment(run["started"])),
        ("Finished", moment(run["finished"])),
        ("Attempts", count(run["attempts"])),
    ]
    if run["attempts"] > 1:
        details.append(("Started again", ", ".join(moment(start) for start in run["starts"][1:])))
    if cost is not None:
        each = f"{cost['per_hour']:g} {cost['currency']} an hour"
        details.append(("Price", each))
        details.append(("Cost of an hour of audio", f"{significant(cost['per_audio_hour'])} {cost['currency']}"))
    yield Part("", [Facts(prominent, prominent=True), Facts(details)])


def _lineage(report: Report) -> Iterator[Part]:
    lineage, scoring = report["lineage"], report["scoring"]
    yield Part(
        "",
        [
            Facts(
                [
                    ("Model", lineage["model"]),
                    ("Classifiers", ", ".join(lineage["classifiers"]) or NONE),
                    ("Inputs", ", ".join(lineage["inputs"]) or NONE),
                    ("Normaliser", _text(scoring["normalizer"])),
                    ("References", _text(scoring["references"])),
                    ("Compounds joined or split count as right", _text(scoring["compounds"])),
                    ("Unit of the intervals", _text(scoring["unit"])),
                    ("Level of the intervals", percent(scoring["level"], 0)),
                    ("Computed by", _engines(report["run"]["engines"])),
                ]
            ),
            *(Note(f"{_capital(warning)}.", "bad") for warning in report["run"]["warnings"]),
        ],
    )
    tables = [
        Table(title, [Column("Name", "name"), Column("Value", "name")], [list(item) for item in items], folded=True)
        for title, items in (
            ("Fingerprint of the inputs", _flat(lineage["fingerprint"])),
            ("Configuration", _flat(lineage["config"])),
            ("Versions", _flat(lineage["versions"])),
        )
        if items
    ]
    if tables:
        yield Part("", tables)


def _engines(engines: Sequence[Mapping[str, Any]]) -> str:
    """What computed the transcripts, and how many of them each did, where it was not one alone."""
    if len(engines) == 1:
        return str(engines[0]["engine"])
    return "; ".join(f"{each['engine']}: {plural(each['transcripts'], 'transcript')}" for each in engines) or NONE


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested names joined by dots."""
    items = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            items += _flat(value, f"{prefix}{name}.")
        else:
            items.append((prefix + name, _text(value)))
    return items


def _text(value: Any) -> str:
    """A setting as one reads it."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value)) or NONE
    return str(value)


_SECTIONS: Final[Sequence[tuple[str, str, str, Callable[[Report], Iterable[Part]]]]] = (
    ("gate", "Gate", "The gate", _gate),
    ("comparison", "Comparison", "Against the baseline", _comparison),
    ("speed", "Speed", "Speed and cost", _speed),
    ("distribution", "Distribution", "How errors are spread", _distribution),
    ("groups", "Groups", "Where errors are", _groups),
    ("confidence", "Confidence", "What confidence is worth", _confidence),
    ("confusions", "Confusions", "Most frequent confusions", _confusions),
    ("worst", "Worst", "Worst utterances", _worst),
    ("classification", "Labels", "Classification", _classification),
    ("failures", "Failures", "What could not be recognised", _errors),
    ("corpus", "Corpus", "The corpus", _corpus),
    ("lineage", "Lineage", "Model and data lineage", _lineage),
)
