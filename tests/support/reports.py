"""Reports as `pipeline.report.render` takes them: realistic ones from a seed, hostile ones, and ones with nothing in them."""

from __future__ import annotations

import random

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


def counts(substitutions, deletions, insertions, reference):
    errors = substitutions + deletions + insertions
    return {
        "hits": reference - substitutions - deletions,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
        "reference": reference,
        "errors": errors,
        "rate": errors / reference if reference else None,
    }


def some_counts(rng, reference, rate):
    errors = round(reference * rate * rng.uniform(0.7, 1.3))
    substitutions, deletions = round(errors * 0.62), round(errors * 0.22)
    return counts(substitutions, deletions, errors - substitutions - deletions, reference)


def interval(rate, width, units=SPEAKERS, unit="speaker"):
    return {
        "low": rate - width,
        "high": rate + width,
        "level": 0.95,
        "units": units,
        "unit": unit,
        "method": "percentile bootstrap",
    }


def alignment(rng, length, rate):
    """Reference and hypothesis of about `length` words, `rate` of them wrong, as runs of one operation."""
    runs = []
    for _ in range(length):
        word = rng.choice(WORDS)
        op = "equal" if rng.random() > rate else rng.choice(["substitute", "substitute", "delete", "insert"])
        reference = "" if op == "insert" else word
        hypothesis = {"equal": word, "delete": ""}.get(op, rng.choice(WORDS))
        if runs and op == "equal" and runs[-1][0] == "equal":
            runs[-1] = [op, f"{runs[-1][1]} {reference}", f"{runs[-1][2]} {hypothesis}"]
        else:
            runs.append([op, reference, hypothesis])
    return runs


def side(runs, which):
    return " ".join(run[which] for run in runs if run[which])


def worst_row(rng, index, rate, length=None):
    runs = alignment(rng, length or rng.randint(4, 24), rate)
    ops = [run[0] for run in runs]
    return {
        "utt_id": f"{rng.randint(100, 9000)}-{rng.randint(100000, 300000)}-{index:04d}",
        "uri": f"s3://corpus/dev/{index:05d}.flac",
        "start_s": 0.0,
        "duration_s": rng.uniform(1, 30),
        "speaker": str(rng.randint(100, 9000)),
        "confidence": rng.uniform(0.3, 0.9),
        "reference": side(runs, 1),
        "text": side(runs, 2),
        "counts": counts(
            ops.count("substitute"), ops.count("delete"), ops.count("insert"), len(side(runs, 1).split()) or 1
        ),
        "alignment": runs,
    }


def hostile_row(text, index):
    return {
        "utt_id": f"{text}#{index}",
        "uri": f"s3://bucket/{text}",
        "start_s": 1.5,
        "duration_s": 2.0,
        "speaker": text,
        "confidence": None,
        "reference": text,
        "text": text,
        "counts": counts(1, 0, 0, 1),
        "alignment": [["equal", text, text], ["substitute", text, "x"], ["delete", text, ""], ["insert", "", text]],
    }


def group(rng, key, utterances, rate, units=SPEAKERS):
    words = some_counts(rng, utterances * 18, rate)
    return {
        "key": key,
        "utterances": utterances,
        "audio_s": utterances * rng.uniform(5, 9),
        "words": words,
        "chars": some_counts(rng, utterances * 90, rate / 3),
        "sentences": counts(round(utterances * min(0.9, rate * 6)), 0, 0, utterances),
        "interval": interval(words["rate"], rate * rng.uniform(0.1, 0.4), units) if units >= 10 else None,
    }


def grouping(by, groups, *, ordered=False, unit="speaker", total=None):
    return {
        "by": by,
        "ordered": ordered,
        "unit": unit,
        "total": total or len(groups),
        "shown": len(groups),
        "groups": groups,
    }


def task(rng, name, labels):
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
        classes.append(
            {
                "label": label,
                "support": support[i],
                "predicted": predicted[i],
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "auroc": None if i == 0 else rng.uniform(0.9, 0.999),
            }
        )
    accuracy = sum(matrix[i][i] for i in range(len(labels))) / sum(support)
    bins = [
        {"low": k / 10, "high": (k + 1) / 10, "count": 40 * k * k, "confidence": k / 10 + 0.05, "accuracy": k / 11}
        for k in range(10)
    ]
    return {
        "task": name,
        "scored": sum(support),
        "no_reference": 120,
        "unknown_label": 7,
        "accuracy": accuracy,
        "interval": interval(accuracy, 0.011),
        "balanced_accuracy": accuracy - 0.012,
        "macro_f1": accuracy - 0.015,
        "micro_f1": accuracy,
        "classes": classes,
        "confusion": {"labels": labels, "predicted": labels, "matrix": matrix},
        "calibration": {"ece": 0.034, "bins": bins},
    }


def example(rng, index, sign):
    better, worse = alignment(rng, 11, 0.05), alignment(rng, 11, 0.4)
    here, baseline = (better, worse) if sign < 0 else (worse, better)
    errors = [sum(run[0] != "equal" for run in runs) for runs in (here, baseline)]
    return {
        "utt_id": f"84-121123-{index:04d}",
        "duration_s": rng.uniform(2, 20),
        "reference": side(here, 1),
        "difference": errors[0] - errors[1],
        "here": {"text": side(here, 2), "errors": errors[0], "alignment": here},
        "baseline": {"text": side(baseline, 2), "errors": errors[1], "alignment": baseline},
    }


def comparison(rng, headline):
    metrics = [
        {
            "metric": each["metric"],
            "here": each["rate"],
            "baseline": each["rate"] + difference,
            "difference": -difference,
            "interval": {**interval(-difference, 0.0035), "method": "paired bootstrap"},
            "probability_of_improvement": probability,
        }
        for each, difference, probability in zip(
            headline, [0.0042, 0.0011, 0.006, 0.0040, 0.0063], [0.991, 0.74, 0.9995, 0.985, 0.999], strict=True
        )
    ]
    baseline = {
        "uri": "s3://runs/baseline",
        "title": "baseline",
        "model": "s3://models/sew-d-tiny-100k",
        "headline": headline,
        "coverage": {"rows": 100_000, "scored": 98_400, "no_reference": 1_200, "failed": 400, "share": 0.984},
        "run": run(),
    }
    return {
        "baseline": baseline,
        "paired": {"utterances": 98_390, "only_here": 22, "only_baseline": 10, "reference_differs": 0},
        "metrics": metrics,
        "tests": [
            {
                "name": "Matched pairs sentence-segment word error",
                "statistic": -2.61,
                "p_value": 0.0091,
                "n": 98_390,
                "detail": "Do the two runs make as many errors in a segment, on average?",
            },
            {
                "name": "McNemar",
                "statistic": 14.2,
                "p_value": 0.00016,
                "n": 9_114,
                "detail": "Are as many sentences wrong only here as only in the baseline?",
            },
        ],
        "changes": {"better": 5_214, "worse": 3_900, "same": 89_276},
        "better": [example(rng, i, -1) for i in range(10)],
        "worse": [example(rng, i, 1) for i in range(10)],
    }


def run(status="done"):
    return {
        "uri": "s3://runs/dev-2026-11",
        "status": status,
        "started": "2026-11-22T18:40:00Z",
        "finished": "2026-11-22T18:58:12Z",
        "wall_s": 1092.4,
        "audio_s": 712_300.0,
        "compute_s": 4_021.0,
        "rtfx": 652.1,
        "compute_rtfx": 177.1,
        "utterances": 99_600,
        "errors": 400,
        "chunks": 1_188,
        "engines": [
            {"engine": "clip by clip bfloat16 on NVIDIA L4", "transcripts": 9_600},
            {"engine": "packed bfloat16 on NVIDIA L4, batches of 300 s", "transcripts": 90_000},
        ],
        "warnings": [
            "9,600 of 99,600 transcripts, or their labels, were computed by a fallback: no packed batches: no",
            "a batch was halved 2 times because memory ran out",
        ],
        "attempts": 2,
        "starts": ["2026-11-22T18:40:00Z", "2026-11-22T18:51:07Z"],
        "cost": {"per_hour": 2.5, "currency": "USD", "total": 3.03, "per_audio_hour": 0.0153},
    }


def headline():
    words = counts(27_900, 9_900, 8_400, 1_000_000)
    return [
        {"metric": "wer", "rate": words["rate"], "interval": interval(words["rate"], 0.0053), "counts": words},
        {
            "metric": "cer",
            "rate": 0.0171,
            "interval": interval(0.0171, 0.0021),
            "counts": counts(51_000, 20_000, 14_500, 5_000_000),
        },
        {
            "metric": "ser",
            "rate": 0.381,
            "interval": interval(0.381, 0.021),
            "counts": counts(37_490, 0, 0, 98_400),
        },
        {"metric": "mer", "rate": 0.0459, "interval": interval(0.0459, 0.0051), "counts": None},
        {"metric": "wil", "rate": 0.0724, "interval": interval(0.0724, 0.0079), "counts": None},
    ]


def histogram(edges, weights, total):
    return {"edges": edges, "counts": [round(total * weight / sum(weights)) for weight in weights]}


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
    return {
        "format": 1,
        "title": "dev-2026-11",
        "generated": "2026-11-22T19:00:00Z",
        "version": "0.1.0",
        "run": run(),
        "coverage": {"rows": 100_000, "scored": 98_400, "no_reference": 1_200, "failed": 400, "share": 0.984},
        "scoring": {
            "normalizer": "english",
            "references": "stored with the run",
            "compounds": False,
            "unit": "speaker",
            "level": 0.95,
        },
        "headline": scores,
        "reference_problems": {
            "missing": {"count": 12, "examples": ["84-121123-0001", *strange[:1]]},
            "duplicate": {"count": 0, "examples": []},
            "unknown": {"count": 3, "examples": ["x"]},
        },
        "distribution": histogram(
            [*(round(0.05 * i, 2) for i in range(21)), None],
            [61, 9, 8, 6, 5, 3, 2.4, 1.6, 1.2, 0.7, 1.1, 0.4, 0.4, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.8],
            98_400,
        ),
        "groups": [
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
        "confidence": {
            "bins": [
                {
                    "low": k / 10,
                    "high": (k + 1) / 10,
                    "utterances": 30 * (k + 1) ** 3,
                    "confidence": k / 10 + 0.056,
                    "accuracy": 1.02 * (k / 10 + 0.05) ** 1.25 - 0.2 * (k == 0),
                }
                for k in range(10)
            ]
        },
        "confusions": {
            "sampled": 20_000,
            "of": 37_490,
            "substitutions": [
                {
                    "reference": rng.choice(WORDS),
                    "hypothesis": rng.choice(WORDS),
                    "count": 900 // (i + 2),
                    "examples": ["84-121123-0001", "84-121123-0007"],
                }
                for i in range(25)
            ]
            + [{"reference": text, "hypothesis": text, "count": 1, "examples": [text]} for text in strange],
            "deletions": [
                {"reference": word, "count": 400 // (i + 1), "examples": [f"84-{i}"]}
                for i, word in enumerate(WORDS[:10])
            ],
            "insertions": [
                {"hypothesis": word, "count": 300 // (i + 1), "examples": [f"84-{i}"]}
                for i, word in enumerate(WORDS[:10])
            ],
        },
        "worst": {
            "shown": rows + len(strange),
            "of": 37_490,
            "rows": [worst_row(rng, i, 0.5 - 0.3 * i / rows) for i in range(rows)]
            + [hostile_row(text, i) for i, text in enumerate(strange)],
        },
        "classification": [
            task(rng, "keyword", ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"][:labels])
        ],
        "errors": [
            {
                "code": code,
                "count": number,
                "share": number / 100_000,
                "examples": [
                    {"utt_id": f"u{i}", "uri": f"s3://corpus/train/{i:05d}.mp3", "message": message} for i in range(3)
                ]
                + [{"utt_id": text, "uri": text, "message": text} for text in strange[:3]],
                "messages": [{"message": message, "count": number}],
            }
            for code, number, message in (
                ("DECODE_FAILED", 311, "Error opening <file>: Format not recognised (frame N)"),
                ("TOO_SHORT", 66, "N samples, fewer than one frame"),
                ("NON_FINITE", 23, "N samples are not finite"),
            )
        ],
        "corpus": {
            "hours": 197.9,
            "utterances": 100_000,
            "speech_share": 0.792,
            "words": 1_912_044,
            "words_per_second": 2.68,
            "durations": histogram([0, 2, 5, 10, 15, 20, 30, 60], [6, 19, 34, 25, 11, 4, 1], 99_600),
            "confidences": histogram([round(0.1 * i, 1) for i in range(11)], [0, 0, 1, 1, 2, 4, 8, 16, 30, 38], 99_600),
            "empty_texts": 214,
            "labels": [
                {
                    "task": "language",
                    "labels": [
                        {"label": label, "count": number, "share": number / 99_600, "mean_score": score}
                        for label, number, score in (
                            ("en", 91_002, 0.98),
                            ("de", 5_120, 0.91),
                            ("he", 2_001, 0.88),
                            ("ar", 1_477, 0.86),
                        )
                    ],
                }
            ],
            "by_tag": [
                {
                    "tag": "accent",
                    "values": [
                        {"value": each["key"], "utterances": each["utterances"], "hours": 12.2, "failed": 4}
                        for each in accents
                    ],
                }
            ],
            "samples": [
                {
                    "utt_id": f"84-121550-{i:04d}",
                    "text": side(alignment(rng, 15, 0), 2),
                    "confidence": rng.uniform(0.5, 1),
                    "duration_s": rng.uniform(1, 20),
                }
                for i in range(8)
            ]
            + [{"utt_id": text, "text": text, "confidence": None, "duration_s": 1.0} for text in strange],
        },
        "lineage": {
            "model": "s3://models/sew-d-tiny-100k-ft-ls100h",
            "classifiers": ["keyword=s3://models/sew-d-kw"],
            "inputs": ["s3://corpus/dev/", *strange[:2]],
            "fingerprint": {
                "model": "sha256:9f2c1a44e0",
                "inputs": {"rows": 100_000, "plan": "sha256:77aa01"},
            },
            "config": {"chunk_s": 600, "max_segment_s": 60.0, "precision": "float32", "vad": None, "strict": False},
            "versions": {"sewd-pipeline": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
        },
        "gate": [
            {"condition": "wer > baseline + 0.2", "value": 4.62, "limit": 5.24, "failed": False},
            {"condition": "cer > 1.5", "value": 1.71, "limit": 1.5, "failed": True},
        ],
        "comparison": comparison(rng, scores),
    }


def unlabeled(seed=0):
    """A corpus without any reference."""
    report = full(seed, hostile=False)
    return report | {
        "title": "podcasts",
        "headline": [],
        "coverage": {"rows": 100_000, "scored": 0, "no_reference": 99_600, "failed": 400, "share": 0.0},
        "reference_problems": None,
        "distribution": None,
        "groups": [],
        "confidence": None,
        "confusions": None,
        "worst": None,
        "classification": [],
        "gate": [],
        "comparison": None,
    }


def empty():
    """A run that has just begun: zero rows, and null wherever null may be."""
    nothing = {"edges": [0, 1], "counts": [0]}
    return {
        "format": 1,
        "title": "",
        "generated": "2026-11-22T19:00:00Z",
        "version": "0.1.0",
        "run": {
            **dict.fromkeys(("finished", "wall_s", "rtfx", "compute_rtfx", "cost")),
            **dict.fromkeys(("audio_s", "compute_s", "utterances", "errors", "chunks", "attempts"), 0),
            "uri": "run",
            "status": "running",
            "started": "2026-11-22T18:40:00Z",
            "starts": [],
            "engines": [],
            "warnings": [],
        },
        "coverage": {"rows": 0, "scored": 0, "no_reference": 0, "failed": 0, "share": None},
        "scoring": {
            "normalizer": "none",
            "references": "stored with the run",
            "compounds": False,
            "unit": "utterance",
            "level": 0.95,
        },
        "headline": [],
        "reference_problems": None,
        "distribution": None,
        "groups": [],
        "confidence": None,
        "confusions": None,
        "worst": None,
        "classification": [],
        "errors": [],
        "corpus": {
            "hours": 0.0,
            "utterances": 0,
            "speech_share": None,
            "words": None,
            "words_per_second": None,
            "durations": nothing,
            "confidences": nothing,
            "empty_texts": 0,
            "labels": [],
            "by_tag": [],
            "samples": [],
        },
        "lineage": {"model": "m", "classifiers": [], "inputs": [], "fingerprint": {}, "config": {}, "versions": {}},
        "gate": [],
        "comparison": None,
    }


def nulls():
    """Every section, with nothing but nulls and zeros in them where the format allows it."""
    zero = counts(0, 0, 0, 0)
    report = empty()
    return report | {
        "headline": [
            {"metric": metric, "rate": None, "interval": None, "counts": zero if metric in {"wer", "cer"} else None}
            for metric in ("wer", "cer", "ser", "mer", "wil")
        ],
        "reference_problems": {key: {"count": 0, "examples": []} for key in ("missing", "duplicate", "unknown")},
        "distribution": {"edges": [0, 0.05, None], "counts": [0, 0]},
        "groups": [
            grouping(
                "speaker",
                [
                    {
                        "key": None,
                        "utterances": 1,
                        "audio_s": 0.0,
                        "words": zero,
                        "chars": zero,
                        "sentences": zero,
                        "interval": None,
                    }
                ],
            )
        ],
        "confidence": {"bins": [{"low": 0, "high": 1, "utterances": 0, "confidence": None, "accuracy": None}]},
        "confusions": {"sampled": 0, "of": 0, "substitutions": [], "deletions": [], "insertions": []},
        "worst": {"shown": 0, "of": 0, "rows": []},
        "classification": [
            {
                **dict.fromkeys(("accuracy", "interval", "balanced_accuracy", "macro_f1", "micro_f1")),
                "task": "one",
                "scored": 0,
                "no_reference": 0,
                "unknown_label": 0,
                "classes": [
                    {
                        **dict.fromkeys(("precision", "recall", "f1", "auroc")),
                        "label": "only",
                        "support": 0,
                        "predicted": 0,
                    }
                ],
                "confusion": {"labels": ["only"], "predicted": ["only"], "matrix": [[0]]},
                "calibration": {
                    "ece": None,
                    "bins": [{"low": 0, "high": 1, "count": 0, "confidence": None, "accuracy": None}],
                },
            }
        ],
        "gate": [{"condition": "wer > 1", "value": None, "limit": None, "failed": True}],
        "comparison": {
            "baseline": {
                "uri": "b",
                "title": "b",
                "model": "m",
                "headline": [],
                "coverage": report["coverage"],
                "run": report["run"],
            },
            "paired": {"utterances": 0, "only_here": 0, "only_baseline": 0, "reference_differs": 0},
            "metrics": [
                {
                    **dict.fromkeys(("here", "baseline", "difference", "interval", "probability_of_improvement")),
                    "metric": "wer",
                }
            ],
            "tests": [{"name": "McNemar", "statistic": None, "p_value": None, "n": 0, "detail": ""}],
            "changes": {"better": 0, "worse": 0, "same": 0},
            "better": [],
            "worse": [],
        },
    }
