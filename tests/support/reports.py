"""Contents of reports for the tests of pages: realistic ones from a seed, with hostile texts, and without any data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pipeline.report.model import (
    BaselineSummary,
    CalibrationBin,
    ChangedText,
    ChangedUtterance,
    Changes,
    ClassificationTask,
    ClassScores,
    Clip,
    ComparisonSection,
    ConfidenceBin,
    ConfusionMatrix,
    Confusions,
    Corpus,
    Counts,
    Coverage,
    EngineUse,
    ErrorMessage,
    ErrorsByCode,
    FailedUtterance,
    GateResult,
    GroupingTable,
    GroupRates,
    Headline,
    Histogram,
    Interval,
    LabelShare,
    Lineage,
    Listening,
    MetricDifference,
    Pairing,
    RecordingRates,
    Recordings,
    ReferenceProblem,
    ReferenceProblems,
    Reliability,
    ReportContent,
    RunCost,
    RunSummary,
    SampleTranscript,
    ScoreCalibration,
    ScoringRules,
    Significance,
    TagTable,
    TagValue,
    TaskLabels,
    WordConfusion,
    WorstUtterance,
    WorstUtterances,
)
from pipeline.runs.status import RunStatus

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "{{ 7*7 }} {% raw %}",
    "שלום עולם זה מבחן",
    "مرحبا بالعالم",
    "a | b `code` *star* [link](javascript:alert(1)) <b>",
    "zero\u200bwidth \u202eoverride\u202c",
    "👩‍👩‍👧 emoji 🎙️",
    "$x_1$ & 50 % \\ #010203",
    "日本語の文字起こし",
    "A" * 300,
)
WORDS = ["the", "of", "and", "it", "was", "evening", "lantern", "garden", "captain", "journey", "whisper", "harbour"]
SPEAKERS = 60


COVERAGE = Coverage(rows=100_000, scored=98_400, no_reference=1_200, failed=400, share=0.984)


def counts(substitutions, deletions, insertions, reference):
    errors = substitutions + deletions + insertions
    hits = reference - substitutions - deletions
    return Counts(
        hits, substitutions, deletions, insertions, reference, errors, errors / reference if reference else None
    )


def random_counts(rng, reference, rate):
    errors = round(reference * rate * rng.uniform(0.7, 1.3))
    substitutions, deletions = round(errors * 0.62), round(errors * 0.22)
    return counts(substitutions, deletions, errors - substitutions - deletions, reference)


def interval(rate, width, units=SPEAKERS, unit="speaker", method="percentile bootstrap"):
    return Interval(low=rate - width, high=rate + width, level=0.95, units=units, method=method, unit=unit)


def alignment(rng, length, rate):
    """Reference and hypothesis of about `length` words, `rate` of them wrong, as runs of one operation."""
    runs = []
    for _ in range(length):
        word = rng.choice(WORDS)
        op = "equal" if rng.random() > rate else rng.choice(["substitute", "substitute", "delete", "insert"])
        reference = "" if op == "insert" else word
        hypothesis = {"equal": word, "delete": ""}.get(op, rng.choice(WORDS))
        if runs and op == "equal" and runs[-1][0] == "equal":
            runs[-1] = (op, f"{runs[-1][1]} {reference}", f"{runs[-1][2]} {hypothesis}")
        else:
            runs.append((op, reference, hypothesis))
    return runs


def side(runs, which):
    """The text of one side of an alignment: 1 is the reference, 2 the hypothesis."""
    return " ".join(run[which] for run in runs if run[which])


def worst_utterance(rng, index, rate, length=None):
    runs = alignment(rng, length or rng.randint(4, 24), rate)
    ops = [run[0] for run in runs]
    reference_words = len(side(runs, 1).split()) or 1
    return WorstUtterance(
        utt_id=f"{rng.randint(100, 9000)}-{rng.randint(100000, 300000)}-{index:04d}",
        uri=f"s3://corpus/dev/{index:05d}.flac",
        start_s=0.0,
        duration_s=rng.uniform(1, 30),
        speaker=str(rng.randint(100, 9000)),
        confidence=rng.uniform(0.3, 0.9),
        reference=side(runs, 1),
        text=side(runs, 2),
        counts=counts(ops.count("substitute"), ops.count("delete"), ops.count("insert"), reference_words),
        alignment=runs,
        clip=Clip("data:audio/ogg;base64,AAAA", 1.0),
    )


def hostile_utterance(text, index):
    return WorstUtterance(
        utt_id=f"{text}#{index}",
        uri=f"s3://bucket/{text}",
        start_s=1.5,
        duration_s=2.0,
        speaker=text,
        confidence=None,
        reference=text,
        text=text,
        counts=counts(1, 0, 0, 1),
        alignment=[("equal", text, text), ("substitute", text, "x"), ("delete", text, ""), ("insert", "", text)],
        clip=None,
    )


def group(rng, key, utterances, rate, units=SPEAKERS):
    words = random_counts(rng, utterances * 18, rate)
    return GroupRates(
        key=key,
        utterances=utterances,
        audio_s=utterances * rng.uniform(5, 9),
        words=words,
        chars=random_counts(rng, utterances * 90, rate / 3),
        sentences=counts(round(utterances * min(0.9, rate * 6)), 0, 0, utterances),
        interval=interval(words.rate, rate * rng.uniform(0.1, 0.4), units) if units >= 10 else None,
    )


def grouping(by, groups, *, ordered=False, unit="speaker", total=None):
    return GroupingTable(by, ordered, unit, total=total or len(groups), shown=len(groups), groups=groups, unscored=0)


def classification_task(rng, name, labels):
    matrix = [
        [rng.randint(300, 900) if i == j else rng.choice([0, 0, rng.randint(1, 60)]) for j in range(len(labels))]
        for i in range(len(labels))
    ]
    support = [sum(row) for row in matrix]
    predicted = [sum(row[j] for row in matrix) for j in range(len(labels))]
    classes = []
    for i, label in enumerate(labels):
        precision = matrix[i][i] / predicted[i] if predicted[i] else None
        recall = matrix[i][i] / support[i] if support[i] else None
        f1 = 2 * precision * recall / (precision + recall) if precision and recall else 0.0
        auroc = None if i == 0 else rng.uniform(0.9, 0.999)
        classes.append(ClassScores(label, precision, recall, f1, support[i], predicted[i], auroc))
    accuracy = sum(matrix[i][i] for i in range(len(labels))) / sum(support)
    bins = [CalibrationBin(k / 10, (k + 1) / 10, 40 * k * k, k / 10 + 0.05, k / 11) for k in range(10)]
    return ClassificationTask(
        task=name,
        scored=sum(support),
        no_reference=120,
        unknown_label=7,
        other_label=3,
        accuracy=accuracy,
        interval=interval(accuracy, 0.011),
        balanced_accuracy=accuracy - 0.012,
        macro_f1=accuracy - 0.015,
        micro_f1=accuracy,
        classes=classes,
        confusion=ConfusionMatrix(labels, labels, matrix),
        calibration=ScoreCalibration(0.034, bins, bins),
    )


def changed_utterance(rng, index, sign):
    better, worse = alignment(rng, 11, 0.05), alignment(rng, 11, 0.4)
    here, baseline = (better, worse) if sign < 0 else (worse, better)
    errors = [sum(run[0] != "equal" for run in runs) for runs in (here, baseline)]
    return ChangedUtterance(
        utt_id=f"84-121123-{index:04d}",
        duration_s=rng.uniform(2, 20),
        reference=side(here, 1),
        difference=errors[0] - errors[1],
        here=ChangedText(side(here, 2), errors[0], here),
        baseline=ChangedText(side(baseline, 2), errors[1], baseline),
    )


def comparison(rng, scores: Sequence[Headline]):
    metrics = [
        MetricDifference(
            metric=each.metric,
            here=each.rate,
            baseline=each.rate + difference,
            difference=-difference,
            interval=interval(-difference, 0.0035, method="paired bootstrap"),
            probability_of_improvement=probability,
        )
        for each, difference, probability in zip(
            scores, [0.0042, 0.0011, 0.006, 0.0040, 0.0063], [0.991, 0.74, 0.9995, 0.985, 0.999], strict=True
        )
    ]
    baseline = BaselineSummary(
        uri="s3://runs/baseline",
        title="baseline",
        model="s3://models/sew-d-tiny-100k",
        headline=scores,
        coverage=COVERAGE,
        run=run(),
    )
    matched_pairs = Significance(
        name="Matched pairs sentence-segment word error",
        statistic=-2.61,
        p_value=0.0091,
        n=98_390,
        detail="Do the two runs make as many errors in a segment, on average?",
    )
    mcnemar = Significance(
        name="McNemar",
        statistic=14.2,
        p_value=0.00016,
        n=9_114,
        detail="Are as many sentences wrong only here as only in the baseline?",
    )
    return ComparisonSection(
        baseline=baseline,
        paired=Pairing(utterances=98_390, only_here=22, only_baseline=10, reference_differs=0),
        metrics=metrics,
        tests=[matched_pairs, mcnemar],
        changes=Changes(better=5_214, worse=3_900, same=89_276),
        better=[changed_utterance(rng, i, -1) for i in range(10)],
        worse=[changed_utterance(rng, i, 1) for i in range(10)],
    )


def run(status="done"):
    return RunSummary(
        uri="s3://runs/dev-2026-11",
        status=RunStatus(status),
        started="2026-11-22T18:40:00Z",
        finished="2026-11-22T18:58:12Z",
        wall_s=1092.4,
        audio_s=712_300.0,
        skipped_s=41_000.0,
        compute_s=4_021.0,
        rtfx=652.1,
        compute_rtfx=177.1,
        utterances=99_600,
        errors=400,
        chunks=1_188,
        engines=[
            EngineUse("clip by clip bfloat16 on NVIDIA L4", 9_600),
            EngineUse("packed bfloat16 on NVIDIA L4, batches of 300 s", 90_000),
        ],
        warnings=[
            "9,600 of 99,600 transcripts, or their labels, were computed by a fallback: no packed batches: no",
            "a batch was halved 2 times because memory ran out",
        ],
        attempts=2,
        starts=["2026-11-22T18:40:00Z", "2026-11-22T18:51:07Z"],
        cost=RunCost(per_hour=2.5, currency="USD", total=3.03, per_audio_hour=0.0153),
    )


def headline():
    words = counts(27_900, 9_900, 8_400, 1_000_000)
    return [
        Headline("wer", words.rate, interval(words.rate, 0.0053), words),
        Headline("cer", 0.0171, interval(0.0171, 0.0021), counts(51_000, 20_000, 14_500, 5_000_000)),
        Headline("ser", 0.381, interval(0.381, 0.021), counts(37_490, 0, 0, 98_400)),
        Headline("mer", 0.0459, interval(0.0459, 0.0051), None),
        Headline("wil", 0.0724, interval(0.0724, 0.0079), None),
    ]


def histogram(edges, weights, total):
    return Histogram(edges, [round(total * weight / sum(weights)) for weight in weights])


def word_confusions(pairs, first_count):
    """The first pair `first_count` times, the second half as often, and so on."""
    return [
        WordConfusion(reference, hypothesis, first_count // (i + 1), [f"84-{i}"])
        for i, (reference, hypothesis) in enumerate(pairs)
    ]


def errors_by_code(code, number, message, strange):
    examples = [FailedUtterance(f"u{i}", f"s3://corpus/train/{i:05d}.mp3", message) for i in range(3)]
    examples += [FailedUtterance(text, text, text) for text in strange[:3]]
    return ErrorsByCode(code, number, number / 100_000, examples, [ErrorMessage(message, number)])


def recordings(rng, hostile):
    names = [*(HOSTILE if hostile else ()), *(f"call_{number:04d}#c{number % 2}" for number in range(20))]
    rows = [RecordingRates(n, n[:9], random_counts(rng, 9_000, 0.1), random_counts(rng, 9_000, 0.12)) for n in names]
    return Recordings(1_200, ReferenceProblem(2, ["call_a", "call_b"]), 12_000_000, 11_900_000, 0.992, 5.0, rows)


def full(seed=0, *, rows=40, groups=SPEAKERS, hostile=True, labels=10):
    """A report with every section: of 100,000 utterances, with `rows` worst ones and `groups` speakers."""
    rng = random.Random(seed)
    strange = HOSTILE if hostile else ()
    scores = headline()
    durations = ("0–2 s", "2–5 s", "5–10 s", "10–15 s", "15–20 s", "20–30 s", "30–60 s")
    speakers = [
        group(rng, str(100 + 37 * i), rng.randint(200, 3000), rng.lognormvariate(-3.1, 0.35)) for i in range(groups)
    ]
    accents = [
        group(rng, key, rng.randint(300, 9000), rng.uniform(0.03, 0.09), units)
        for key, units in (("scottish", 12), ("irish", 11), ("australian", 14), (None, 9), ("indian", 14))
    ]
    return ReportContent(
        title="dev-2026-11",
        generated="2026-11-22T19:00:00Z",
        version="0.1.0",
        run=run(),
        coverage=COVERAGE,
        scoring=ScoringRules("english", "stored with the run", compounds=False, unit="speaker", level=0.95),
        headline=scores,
        reference_problems=ReferenceProblems(
            missing=ReferenceProblem(12, ["84-121123-0001", *strange[:1]]),
            unknown=ReferenceProblem(3, ["x"]),
            duplicate=ReferenceProblem(0, []),
        ),
        distribution=histogram(
            [*(round(0.05 * i, 2) for i in range(21)), None],
            [61, 9, 8, 6, 5, 3, 2.4, 1.6, 1.2, 0.7, 1.1, 0.4, 0.4, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.8],
            98_400,
        ),
        groups=[
            grouping(
                "duration",
                [
                    group(rng, key, rng.randint(3000, 30000), rate)
                    for key, rate in zip(durations, (0.094, 0.058, 0.045, 0.041, 0.042, 0.047, 0.063), strict=True)
                ],
                ordered=True,
            ),
            grouping("speaker", speakers, total=groups),
            grouping(
                "confidence",
                [group(rng, f"decile {i + 1}", 9_840, 0.002 + 0.16 * (0.62**i)) for i in range(10)],
                ordered=True,
            ),
            grouping(
                "tags.accent", accents + [group(rng, text, 90, 0.05, 9) for text in strange], total=len(accents) + 40
            ),
        ],
        confidence=Reliability(
            [
                ConfidenceBin(
                    low=k / 10,
                    high=(k + 1) / 10,
                    utterances=30 * (k + 1) ** 3,
                    confidence=k / 10 + 0.056,
                    accuracy=1.02 * (k / 10 + 0.05) ** 1.25 - 0.2 * (k == 0),
                )
                for k in range(10)
            ],
            ece=0.083,
            risk_area=0.031,
            risk_curve=[(k / 20, 0.004 + 0.06 * (k / 20) ** 2) for k in range(1, 21)],
        ),
        confusions=Confusions(
            sampled=20_000,
            of=37_490,
            substitutions=word_confusions([(rng.choice(WORDS), rng.choice(WORDS)) for _ in range(25)], 450)
            + [WordConfusion(text, text, 1, [text]) for text in strange],
            deletions=word_confusions([(word, "") for word in WORDS[:10]], 400),
            insertions=word_confusions([("", word) for word in WORDS[:10]], 300),
        ),
        worst=WorstUtterances(
            shown=rows + len(strange),
            of=37_490,
            rows=[worst_utterance(rng, i, 0.5 - 0.3 * i / rows) for i in range(rows)]
            + [hostile_utterance(text, i) for i, text in enumerate(strange)],
            listening=Listening("embed", rows + len(strange), rows, {"MISSING": len(strange)} if strange else {}),
        ),
        classification=[
            classification_task(
                rng, "keyword", ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"][:labels]
            )
        ],
        errors=[
            errors_by_code(code, number, message, strange)
            for code, number, message in (
                ("DECODE_FAILED", 311, "Error opening <file>: Format not recognised (frame N)"),
                ("TOO_SHORT", 66, "N samples, fewer than one frame"),
                ("NON_FINITE", 23, "N samples are not finite"),
            )
        ],
        corpus=Corpus(
            hours=197.9,
            utterances=100_000,
            sampled=50_000,
            of=100_000,
            speech_share=0.792,
            words=1_912_044,
            words_per_second=2.68,
            durations=histogram([0, 2, 5, 10, 15, 20, 30, 60], [6, 19, 34, 25, 11, 4, 1], 99_600),
            confidences=histogram([round(0.1 * i, 1) for i in range(11)], [0, 0, 1, 1, 2, 4, 8, 16, 30, 38], 99_600),
            empty_texts=214,
            labels=[
                TaskLabels(
                    "language",
                    99_600,
                    310,
                    [
                        LabelShare(label, number, number / 99_600, score, number // 320)
                        for label, number, score in (
                            ("en", 91_002, 0.98),
                            ("de", 5_120, 0.91),
                            ("he", 2_001, 0.88),
                            ("ar", 1_477, 0.86),
                        )
                    ],
                )
            ],
            by_tag=[TagTable("accent", [TagValue(each.key, each.utterances, 12.2, 4) for each in accents])],
            samples=[
                SampleTranscript(
                    utt_id=f"84-121550-{i:04d}",
                    text=side(alignment(rng, 15, 0), 2),
                    confidence=rng.uniform(0.5, 1),
                    duration_s=rng.uniform(1, 20),
                )
                for i in range(8)
            ]
            + [SampleTranscript(text, text, None, 1.0) for text in strange],
        ),
        lineage=Lineage(
            model="s3://models/sew-d-tiny-100k-ft-ls100h",
            classifiers=["keyword=s3://models/sew-d-kw"],
            inputs=["s3://corpus/dev/", *strange[:2]],
            fingerprint={"model": "sha256:9f2c1a44e0", "inputs": {"rows": 100_000, "plan": "sha256:77aa01"}},
            config={"chunk_s": 600, "max_segment_s": 60.0, "precision": "float32", "vad": None, "strict": False},
            versions={"sewd-pipeline": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
        ),
        gate=[
            GateResult("wer > baseline + 0.2", value=4.62, limit=5.24, failed=False),
            GateResult("cer > 1.5", value=1.71, limit=1.5, failed=True),
        ],
        comparison=comparison(rng, scores),
        recordings=recordings(rng, hostile),
    )


def unlabeled(seed=0):
    """A corpus without any reference."""
    return replace(
        full(seed, hostile=False),
        title="podcasts",
        headline=[],
        coverage=Coverage(rows=100_000, scored=0, no_reference=99_600, failed=400, share=0.0),
        reference_problems=None,
        distribution=None,
        groups=[],
        confidence=None,
        confusions=None,
        worst=None,
        classification=[],
        gate=[],
        comparison=None,
        recordings=None,
    )


def empty():
    """A run that has just begun: zero rows, and None wherever the format allows it."""
    nothing = Histogram([0, 1], [0])
    return ReportContent(
        title="",
        generated="2026-11-22T19:00:00Z",
        version="0.1.0",
        run=RunSummary(
            uri="run",
            status=RunStatus.RUNNING,
            started="2026-11-22T18:40:00Z",
            finished=None,
            wall_s=None,
            audio_s=0,
            skipped_s=0,
            compute_s=0,
            rtfx=None,
            compute_rtfx=None,
            utterances=0,
            errors=0,
            chunks=0,
            engines=[],
            warnings=[],
            attempts=0,
            starts=[],
            cost=None,
        ),
        coverage=Coverage(rows=0, scored=0, no_reference=0, failed=0, share=None),
        scoring=ScoringRules("none", "stored with the run", compounds=False, unit="utterance", level=0.95),
        headline=[],
        reference_problems=None,
        distribution=None,
        groups=[],
        confidence=None,
        confusions=None,
        worst=None,
        classification=[],
        errors=[],
        corpus=Corpus(
            hours=0.0,
            utterances=0,
            sampled=0,
            of=0,
            speech_share=None,
            words=0,
            words_per_second=None,
            durations=nothing,
            confidences=nothing,
            empty_texts=0,
            labels=[],
            by_tag=[],
            samples=[],
        ),
        lineage=Lineage(model="m", classifiers=[], inputs=[], fingerprint={}, config={}, versions={}),
        gate=[],
        comparison=None,
    )


def nulls():
    """Every section, with nothing but None and zeros in them where the format allows it."""
    zero = counts(0, 0, 0, 0)
    no_problem = ReferenceProblem(0, [])
    report = empty()
    return replace(
        report,
        headline=[
            Headline(metric, None, None, zero if metric in {"wer", "cer"} else None)
            for metric in ("wer", "cer", "ser", "mer", "wil")
        ],
        reference_problems=ReferenceProblems(no_problem, no_problem, no_problem),
        distribution=Histogram([0, 0.05, None], [0, 0]),
        groups=[grouping("speaker", [GroupRates(None, 1, 0.0, zero, zero, zero, None)])],
        confidence=Reliability([ConfidenceBin(0, 1, 0, None, None)]),
        confusions=Confusions(0, 0, [], [], []),
        worst=WorstUtterances(0, 0, [], None),
        classification=[
            ClassificationTask(
                task="one",
                scored=0,
                no_reference=0,
                unknown_label=0,
                other_label=0,
                accuracy=None,
                interval=None,
                balanced_accuracy=None,
                macro_f1=None,
                micro_f1=None,
                classes=[ClassScores("only", None, None, None, 0, 0, None)],
                confusion=ConfusionMatrix(["only"], ["only"], [[0]]),
                calibration=ScoreCalibration(None, [CalibrationBin(0, 1, 0, None, None)], []),
            )
        ],
        gate=[GateResult("wer > 1", None, None, failed=True)],
        comparison=ComparisonSection(
            baseline=BaselineSummary("b", "b", "m", [], report.coverage, report.run),
            paired=Pairing(0, 0, 0, 0),
            metrics=[MetricDifference("wer", None, None, None, None, None)],
            tests=[Significance("McNemar", None, None, 0, "")],
            changes=Changes(0, 0, 0),
            better=[],
            worse=[],
        ),
        recordings=Recordings(0, no_problem, 0, 0, None, 0.0, [RecordingRates("", None, zero, zero)]),
    )
