"""What a report says of a run: one dict of plain values, that HTML, Markdown and JSON are renderings of.

Sums and rates are of all rows; what is cut or sampled says of how many. Shares are 0..1, times in seconds.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.compare import Comparison, compare_runs, rules_of
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.examples import rows_by_id, sampled_rows, wrong_rows
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.label_counts import LabelCounts
from pipeline.evaluation.labels import LabelEvaluation, evaluate_labels
from pipeline.evaluation.reading import READING, EvaluationSettings, regrouped
from pipeline.evaluation.results import Evaluation, Figures, Group, Grouping
from pipeline.evaluation.tally import RATE_EDGES, key_of
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, now, open_files
from pipeline.scoring.alignment import align, confusions
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.rules import Scoring

FORMAT: Final = 1
WORST: Final = 300
GROUPS_SHOWN: Final = 200
CONFUSIONS_SHOWN: Final = 50
WRONG_SAMPLED: Final = 10_000
CORPUS_SAMPLED: Final = 50_000
EXAMPLES: Final = 5
TAG_VALUES: Final = 20
SHOWN_CHARACTERS: Final = 400_000
"""Of the worst utterances' references: what keeps a page of very long texts small."""
_DEFAULT_GROUPINGS: Final = ("speaker", "duration", "confidence")
_CONFIDENCE_EDGES: Final = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class Cost:
    """Price of the machines of a run.

    Attributes:
        per_hour: of all machines together, an hour.
        currency: its name.
    """

    per_hour: float
    currency: str = "USD"


@dataclass(frozen=True)
class ReportSettings:
    """What to report.

    Attributes:
        evaluation: rules, unit and level; its groupings come before the usual ones (speaker, duration, confidence).
        corpus: describe the corpus alone, as if there were no references.
        cost: price of the machines, if known.
    """

    evaluation: EvaluationSettings = EvaluationSettings()  # noqa: RUF009  # frozen
    corpus: bool = False
    cost: Cost | None = None


def report(
    run: Run,
    baseline: Run | None = None,
    settings: ReportSettings | None = None,
    gate: Sequence[Verdict] = (),
) -> dict[str, Any]:
    """All that a report says of a run, and of its difference from a baseline.

    Args:
        run: the run; what is committed counts, also where it is not done.
        baseline: another run over the same corpus.
        settings: what to report.
        gate: conditions that were judged.

    Raises:
        UsageError: the runs have no rules or no utterance in common.
    """
    settings = settings or ReportSettings()
    wanted = settings.evaluation
    if baseline is not None:
        wanted = replace(wanted, scoring=rules_of(run, baseline, wanted.scoring))
    by = tuple(dict.fromkeys([*wanted.by, *_DEFAULT_GROUPINGS]))
    wanted = replace(wanted, by=by, worst=WORST)
    evaluation = evaluate_run(run, wanted)
    scored = bool(evaluation.scored) and not settings.corpus
    return {
        "format": FORMAT,
        "title": posixpath.basename(run.uri.rstrip("/")) or run.uri,
        "generated": now(),
        "version": importlib.metadata.version("sewd-pipeline"),
        "run": _run(run, settings.cost),
        "coverage": _coverage(evaluation),
        "scoring": _scoring(evaluation, wanted),
        "headline": headline(evaluation) if scored else [],
        "reference_problems": _problems(evaluation) if scored else None,
        "distribution": _distribution(evaluation) if scored else None,
        "groups": [_grouping(g) for g in evaluation.groupings if _says_something(g)] if scored else [],
        "confidence": _reliability(evaluation) if scored else None,
        "confusions": _confusions(run, evaluation) if scored else None,
        "worst": _worst(run, evaluation) if scored else None,
        "classification": [] if settings.corpus else [_classification(task) for task in evaluate_labels(run, wanted)],
        "errors": _errors(run, evaluation.failed),
        "corpus": corpus(run),
        "lineage": _lineage(run),
        "gate": [asdict(verdict) for verdict in gate],
        "comparison": None if baseline is None or settings.corpus else _comparison(run, baseline, wanted),
    }


def _run(run: Run, cost: Cost | None) -> dict[str, Any]:
    totals = run.totals()
    starts = [attempt["started"] for attempt in run.record["attempts"]]
    finished = run.record.get("finished")
    wall_s = _seconds(starts[0], finished) if len(starts) == 1 and finished else None
    return {
        "uri": run.uri,
        "status": run.status,
        "started": starts[0] if starts else None,
        "finished": finished,
        "wall_s": wall_s,
        "audio_s": totals.audio_s,
        "compute_s": totals.compute_s,
        "rtfx": totals.audio_s / wall_s if wall_s else None,
        "compute_rtfx": totals.audio_s / totals.compute_s if totals.compute_s else None,
        "utterances": totals.utterances,
        "errors": totals.errors,
        "chunks": totals.chunks,
        "engines": [{"engine": engine, "transcripts": number} for engine, number in totals.engines.items()],
        "warnings": totals.warnings,
        "attempts": len(starts),
        "starts": starts,
        "cost": _cost(cost, wall_s, totals.audio_s),
    }


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _cost(cost: Cost | None, wall_s: float | None, audio_s: float) -> dict[str, Any] | None:
    if cost is None or wall_s is None:
        return None
    total = cost.per_hour * wall_s / 3600
    return asdict(cost) | {"total": total, "per_audio_hour": total / (audio_s / 3600) if audio_s else None}


def _coverage(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "rows": evaluation.figures.utterances + evaluation.failed,
        "scored": evaluation.scored,
        "no_reference": evaluation.no_reference,
        "failed": evaluation.failed,
        "share": evaluation.coverage,
    }


def _scoring(evaluation: Evaluation, settings: EvaluationSettings) -> dict[str, Any]:
    names = [posixpath.basename(uri) for uri in evaluation.scoring.references]
    return {
        "normalizer": evaluation.scoring.normalizer,
        "references": ", ".join(names) or "stored with the run",
        "compounds": evaluation.scoring.compounds,
        "unit": evaluation.unit,
        "level": settings.level,
    }


def headline(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The corpus's rates."""
    counts = evaluation.figures.counts
    return [
        {
            "metric": metric,
            "rate": rate,
            "interval": _interval(evaluation.intervals.get(metric), evaluation.unit),
            "counts": _counts(counts[metric]) if metric in counts else None,
        }
        for metric, rate in evaluation.rates.items()
    ]


def _interval(interval: Interval | None, unit: str) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval) | {"unit": unit}


def _counts(counts: ErrorCounts) -> dict[str, Any]:
    return asdict(counts) | {"reference": counts.reference, "errors": counts.errors, "rate": counts.error_rate}


def _problems(evaluation: Evaluation) -> dict[str, Any] | None:
    if evaluation.problems is None:
        return None
    return {
        kind: {"count": count, "examples": list(examples)}
        for kind, (count, examples) in asdict(evaluation.problems).items()
    }


def _distribution(evaluation: Evaluation) -> dict[str, Any]:
    return {"edges": [*RATE_EDGES, None], "counts": list(evaluation.spread)}


def _says_something(grouping: Grouping) -> bool:
    """Not where no utterance has the key: a table of one row that says nothing."""
    return any(group.key is not None and group.figures.sentences for group in grouping.groups)


def _grouping(grouping: Grouping) -> dict[str, Any]:
    groups: Sequence[Group] = grouping.groups
    if not grouping.ordered:
        groups = sorted(groups, key=lambda g: (-g.figures.words.errors, g.key or ""))
    return {
        "by": grouping.by,
        "ordered": grouping.ordered,
        "unit": grouping.unit,
        "total": len(groups),
        "shown": min(len(groups), GROUPS_SHOWN),
        "groups": [_group(group, grouping.unit) for group in groups[:GROUPS_SHOWN]],
    }


def _group(group: Group, unit: str) -> dict[str, Any]:
    return {
        "key": group.key,
        "utterances": group.figures.utterances,
        "audio_s": group.figures.audio_s,
        "words": _counts(group.figures.words),
        "chars": _counts(group.figures.chars),
        "sentences": _counts(group.figures.sentence_counts),
        "interval": _interval(group.interval, unit),
    }


def _reliability(evaluation: Evaluation) -> dict[str, Any] | None:
    """Mean confidence beside the share of right words, by decile of confidence."""
    deciles = [g for grouping in evaluation.groupings if grouping.by == "confidence" for g in grouping.groups]
    bins = [_reliability_bin(g.key, g.figures) for g in deciles if g.key is not None and g.figures.words.reference]
    return {"bins": bins} if bins else None


def _reliability_bin(key: str, figures: Figures) -> dict[str, Any]:
    low, high = key.split("-")
    rate = figures.rates["wer"]
    return {
        "low": float(low),
        "high": float(high),
        "utterances": figures.utterances,
        "confidence": figures.confidence,
        "accuracy": None if rate is None else 1 - rate,
    }


def _confusions(run: Run, evaluation: Evaluation) -> dict[str, Any] | None:
    if not evaluation.figures.sentence_errors:
        return None
    rows = wrong_rows(run, evaluation.scoring, WRONG_SAMPLED)
    found = confusions(rows, CONFUSIONS_SHOWN)
    return {
        "sampled": len(rows),
        "of": evaluation.figures.sentence_errors,
        "substitutions": [asdict(c) for c in found["substitute"]],
        "deletions": [asdict(c) for c in found["delete"]],
        "insertions": [asdict(c) for c in found["insert"]],
    }


def _worst(run: Run, evaluation: Evaluation) -> dict[str, Any] | None:
    if not evaluation.worst:
        return None
    columns = ["uri", "start_s", "duration_s", "speaker", "confidence"]
    rows = rows_by_id(run, evaluation.worst, columns, evaluation.scoring).to_pylist()
    lengths = itertools.accumulate(len(row["normalized_reference"]) for row in rows)
    rows = [row for row, length in zip(rows, lengths, strict=True) if length <= SHOWN_CHARACTERS]
    return {
        "shown": len(rows),
        "of": evaluation.figures.sentence_errors,
        "rows": [
            {name: row[name] for name in ("utt_id", *columns)}
            | {"reference": row["normalized_reference"], "text": row["text"], "counts": _counts(_counts_of(row))}
            | {"alignment": align(row["normalized_reference"], row["normalized_text"])}
            for row in rows
        ],
    }


def _counts_of(row: Mapping[str, Any]) -> ErrorCounts:
    return ErrorCounts(row["hits"], row["substitutions"], row["deletions"], row["insertions"])


def _classification(labels: LabelEvaluation) -> dict[str, Any]:
    counts: LabelCounts = labels.counts
    return {
        "task": labels.task,
        "scored": counts.rows,
        "no_reference": labels.no_reference,
        "unknown_label": labels.unknown_label,
        "accuracy": counts.accuracy,
        "interval": _interval(labels.interval, labels.unit),
        "balanced_accuracy": counts.balanced_accuracy,
        "macro_f1": counts.macro_f1,
        "micro_f1": counts.micro_f1,
        "classes": [
            asdict(score) | {"auroc": labels.scores[score.label].auroc if score.label in labels.scores else None}
            for score in counts.classes
        ],
        "confusion": {
            "labels": list(counts.labels),
            "predicted": list(counts.labels),
            "matrix": counts.confusion.tolist(),
        },
        "calibration": {
            "ece": labels.calibration.expected_error,
            "bins": [
                {"low": b.low, "high": b.high, "count": b.rows, "confidence": b.confidence, "accuracy": b.accuracy}
                for b in labels.calibration.bins
            ],
        },
    }


def _errors(run: Run, failed: int) -> list[dict[str, Any]]:
    """Failed rows by code, the most frequent first, with the decoder's words, in which numbers are masked.

    Codes are counted in all rows; examples and words come from a sample, where there are very many.
    """
    if not failed:
        return []
    sample, _ = sampled_rows(run, "errors", ["utt_id", "uri", "code", "message"], CORPUS_SAMPLED)
    codes = run.read(lambda files: _codes(run, files["errors"]))
    found = []
    for code, count in sorted(codes.items(), key=lambda item: (-item[1], item[0])):
        rows = sample.filter(pc.equal(sample["code"], code))
        words = Counter(re.sub(r"\d+(\.\d+)?", "#", message) for message in rows["message"].to_pylist())
        found.append(
            {
                "code": code,
                "count": count,
                "share": count / failed,
                "examples": rows.slice(0, EXAMPLES).select(["utt_id", "uri", "message"]).to_pylist(),
                "messages": [{"message": text, "count": n} for text, n in words.most_common(EXAMPLES)],
            }
        )
    return found


def _codes(run: Run, files: Sequence[DataFile]) -> Counter[str]:
    """Failed rows by code."""
    counts: Counter[str] = Counter()
    dataset = open_files(run.uri, "errors", [file.path for file in files])
    for batch in dataset.to_batches(columns=["code"], **READING):
        counts.update({row["values"]: row["counts"] for row in pc.value_counts(batch["code"]).to_pylist()})
    return counts


def corpus(run: Run) -> dict[str, Any]:
    """What is in a corpus, as far as a run can tell without references."""
    totals = run.totals()
    columns = ["utt_id", "text", "words", "duration_s", "confidence", "tags"]
    rows, total = sampled_rows(run, "transcripts", columns, CORPUS_SAMPLED)
    seconds = pc.sum(rows["duration_s"], min_count=0).as_py()
    words = rows["words"].combine_chunks()
    spoken = pc.list_flatten(words) if rows.num_rows else None
    inside = 0.0
    if spoken is not None and len(spoken):
        inside = pc.sum(pc.subtract(pc.struct_field(spoken, "end_s"), pc.struct_field(spoken, "start_s"))).as_py()
    number = 0 if spoken is None else len(spoken)
    failed, _ = sampled_rows(run, "errors", ["tags"], CORPUS_SAMPLED)
    return {
        "hours": totals.audio_s / 3600,
        "utterances": total,
        "sampled": rows.num_rows,
        "of": total,
        "speech_share": inside / seconds if seconds else None,
        "words": number,
        "words_per_second": number / seconds if seconds else None,
        "durations": _histogram(rows["duration_s"], _duration_edges(rows["duration_s"])),
        "confidences": _histogram(rows["confidence"], _CONFIDENCE_EDGES),
        "empty_texts": pc.sum(pc.equal(rows["text"], ""), min_count=0).as_py(),
        "labels": _given_labels(run),
        "by_tag": _by_tag(rows, failed),
        "samples": rows.select(["utt_id", "text", "confidence", "duration_s"]).slice(0, 30).to_pylist(),
    }


def _duration_edges(seconds: pa.ChunkedArray) -> Sequence[float]:
    longest = pc.max(seconds).as_py() or 1.0
    return tuple(np.linspace(0, np.ceil(longest), 31).tolist())


def _histogram(values: pa.ChunkedArray, edges: Sequence[float]) -> dict[str, Any]:
    counts, _ = np.histogram(values.drop_null().to_numpy(), edges)
    return {"edges": list(edges), "counts": counts.tolist()}


def _given_labels(run: Run) -> list[dict[str, Any]]:
    """Labels by task, the most frequent first, counted a batch at a time."""
    numbers, scores = run.read(lambda files: _label_sums(run, files["labels"]))
    totals = Counter[str]()
    for (task, _), number in numbers.items():
        totals[task] += number
    return [
        {
            "task": task,
            "labels": [
                {
                    "label": label,
                    "count": number,
                    "share": number / totals[task],
                    "mean_score": scores[task, label] / number,
                }
                for (of_task, label), number in sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
                if of_task == task
            ][:GROUPS_SHOWN],
        }
        for task in sorted(totals)
    ]


def _label_sums(run: Run, files: Sequence[DataFile]) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], float]]:
    """By task and label: rows, and the sum of their scores."""
    numbers: Counter[tuple[str, str]] = Counter()
    scores: dict[tuple[str, str], float] = defaultdict(float)
    dataset = open_files(run.uri, "labels", [file.path for file in files])
    for rows in regrouped(dataset.to_batches(columns=["task", "label", "score"], **READING)):
        sums = rows.group_by(["task", "label"]).aggregate([([], "count_all"), ("score", "sum")])
        for row in sums.to_pylist():
            numbers[row["task"], row["label"]] += row["count_all"]
            scores[row["task"], row["label"]] += row["score_sum"]
    return numbers, scores


def _by_tag(rows: pa.Table, failed: pa.Table) -> list[dict[str, Any]]:
    """Tags of few values (a language, a channel, a source), by value; of the sampled rows."""
    texts = pc.unique(rows["tags"]).drop_null().to_pylist()
    different: dict[str, set[str]] = {}
    for text in texts:
        for name, value in json.loads(text).items():
            different.setdefault(name, set()).add(json.dumps(value))
    found = []
    for name in sorted(name for name, values in different.items() if len(values) <= TAG_VALUES):
        _, keys = key_of(f"tags.{name}")
        table = pa.table({"value": keys(rows), "duration_s": rows["duration_s"]})
        sums = table.group_by("value").aggregate([([], "count_all"), ("duration_s", "sum")]).to_pylist()
        broken = Counter(keys(failed).to_pylist())
        values = [
            {
                "value": row["value"],
                "utterances": row["count_all"],
                "hours": (row["duration_s_sum"] or 0.0) / 3600,
                "failed": broken[row["value"]],
            }
            for row in sorted(sums, key=lambda r: -r["count_all"])
        ]
        found.append({"tag": name, "values": values})
    return found


def _lineage(run: Run) -> dict[str, Any]:
    config = run.record["config"]
    return {
        "model": config["model"],
        "classifiers": list(config.get("classifiers", ())),
        "inputs": list(config.get("inputs", ())),
        "fingerprint": run.record["fingerprint"],
        "config": config,
        "versions": {
            name: value
            for name, value in (run.record["attempts"] or [{}])[-1].items()
            if name not in ("id", "started", "host")
        },
    }


def _comparison(run: Run, baseline: Run, settings: EvaluationSettings) -> dict[str, Any]:
    scoring = rules_of(run, baseline, settings.scoring)
    found = compare_runs(run, baseline, scoring, unit=settings.unit, level=settings.level)
    theirs = evaluate_run(baseline, replace(settings, by=(), worst=0, scoring=scoring))
    return {
        "baseline": {
            "uri": baseline.uri,
            "title": posixpath.basename(baseline.uri.rstrip("/")) or baseline.uri,
            "model": baseline.record["config"]["model"],
            "headline": headline(theirs),
            "coverage": _coverage(theirs),
            "run": _run(baseline, None),
        },
        **comparison(run, baseline, found, scoring),
    }


def comparison(run: Run, baseline: Run, found: Comparison, scoring: Scoring) -> dict[str, Any]:
    """What a comparison says, with aligned texts of the utterances that changed most."""
    return {
        "paired": {
            "utterances": found.utterances,
            "only_here": found.only_here,
            "only_baseline": found.only_baseline,
            "reference_differs": found.reference_differs,
        },
        "metrics": [
            {
                "metric": metric,
                "here": here,
                "baseline": there,
                "difference": found.bootstraps[metric].difference,
                "interval": _interval(found.bootstraps[metric].interval, found.unit),
                "probability_of_improvement": found.bootstraps[metric].probability_of_improvement,
            }
            for metric, (here, there) in found.rates.items()
        ],
        "tests": [asdict(test) for test in found.tests],
        "changes": {
            "better": found.better,
            "worse": found.worse,
            "same": found.utterances - found.better - found.worse,
        },
        "better": _changed(run, baseline, found.best, scoring),
        "worse": _changed(run, baseline, found.worst, scoring),
    }


def _changed(run: Run, baseline: Run, utt_ids: Sequence[str], scoring: Scoring) -> list[dict[str, Any]]:
    if not utt_ids:
        return []
    here, there = (rows_by_id(r, utt_ids, ["duration_s"], scoring).to_pylist() for r in (run, baseline))
    return [
        {
            "utt_id": a["utt_id"],
            "duration_s": a["duration_s"],
            "reference": a["normalized_reference"],
            "difference": _counts_of(a).errors - _counts_of(b).errors,
            "here": _side(a),
            "baseline": _side(b),
        }
        for a, b in zip(here, there, strict=True)
    ]


def _side(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": row["text"],
        "errors": _counts_of(row).errors,
        "alignment": align(row["normalized_reference"], row["normalized_text"]),
    }
