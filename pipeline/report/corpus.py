"""What a run says about its corpus without references: sizes, histograms, labels, tags and failed utterances.

Labels and error codes are counted over all rows. The rest comes from a random sample of `CORPUS_SAMPLED` rows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.examples import sampled_rows
from pipeline.evaluation.group_keys import grouping_key
from pipeline.evaluation.labels import labels_of_others
from pipeline.evaluation.reading import rebatch, scan_batches
from pipeline.report.model import (
    Corpus,
    ErrorMessage,
    ErrorsByCode,
    FailedUtterance,
    Histogram,
    LabelShare,
    SampleTranscript,
    TagTable,
    TagValue,
    TaskLabels,
)
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run
from pipeline.secrets import without_secrets

CORPUS_SAMPLED: Final = 50_000
EXAMPLES: Final = 5
SAMPLES: Final = 30
LABELS_SHOWN: Final = 200
PAUSE_S: Final = 0.5
"""Silence between two words that is no part of the speech: in fluent speech hardly any is longer."""
TAG_VALUES: Final = 20
"""Tags with more values than this are ids or texts, and get no table."""
_BINS: Final = 25  # of a histogram, at most


def describe_corpus(run: Run) -> Corpus:
    """Describe what is in a corpus."""
    columns = ["utt_id", "text", "words", "duration_s", "confidence", "tags"]
    rows, total = sampled_rows(run, "transcripts", columns, CORPUS_SAMPLED)
    failed, _ = sampled_rows(run, "errors", ["tags"], CORPUS_SAMPLED)
    seconds = pc.sum(rows["duration_s"], min_count=0).as_py()
    words, speech_s = _words(rows)
    samples = rows.select(["utt_id", "text", "confidence", "duration_s"]).slice(0, SAMPLES).to_pylist()
    return Corpus(
        hours=run.totals().audio_s / 3600,
        utterances=total,
        sampled=rows.num_rows,
        of=total,
        speech_share=speech_s / seconds if seconds else None,
        words=words,
        words_per_second=words / seconds if seconds else None,
        durations=_histogram(rows["duration_s"], 0.0),
        confidences=_histogram(rows["confidence"]),
        empty_texts=pc.sum(pc.equal(rows["text"], ""), min_count=0).as_py(),
        labels=_labels_by_task(run),
        by_tag=_tag_tables(rows, failed),
        samples=[SampleTranscript(**row) for row in samples],
    )


def _words(rows: pa.Table) -> tuple[int, float]:
    """Number of words, and the seconds of speech: from word to word, without gaps of `PAUSE_S` or more."""
    if not rows.num_rows:
        return 0, 0.0
    lists = rows["words"].combine_chunks()
    words = pc.list_flatten(lists)
    if not len(words):
        return 0, 0.0
    utterance = pc.list_parent_indices(lists).to_numpy()
    starts = pc.struct_field(words, "start_s").to_numpy()
    ends = pc.struct_field(words, "end_s").to_numpy()
    gaps = starts[1:] - ends[:-1]
    within = gaps[(utterance[1:] == utterance[:-1]) & (gaps < PAUSE_S)]
    return len(words), float((ends - starts).sum() + within.sum())


def _histogram(values: pa.ChunkedArray, start: float | None = None) -> Histogram:
    """Bins of a round width over the range of the values, from `start` on if it is given."""
    numbers = values.drop_null().to_numpy().astype(float)
    if not len(numbers):
        return Histogram([0, 1], [0])
    low, high = numbers.min() if start is None else start, numbers.max()
    least = max((high - low) / (_BINS - 1), 1e-3)
    power = 10 ** math.floor(math.log10(least))
    width = next(width for factor in (1, 2, 5, 10) if (width := factor * power) >= least * (1 - 1e-9))
    first, last = math.floor(low / width), math.ceil(high / width - 1e-6)
    edges = [round(position * width, 9) for position in range(first, max(last, first + 1) + 1)]
    counts, _ = np.histogram(numbers.clip(edges[0], edges[-1]), edges)  # an end may be off by a rounding error
    return Histogram(edges, counts.tolist())


@dataclass
class _LabelSums:
    """Rows with a label, and the sum of their scores: those meant for the classifier, and the others."""

    meant: int = 0
    meant_score: float = 0.0
    others: int = 0
    others_score: float = 0.0


def _labels_by_task(run: Run) -> list[TaskLabels]:
    sums = run.read(lambda files: _sum_labels(run, files["labels"]))
    return [_task_labels(task, by_label) for task, by_label in sorted(sums.items())]


def _task_labels(task: str, by_label: Mapping[str, _LabelSums]) -> TaskLabels:
    if not any(sums.meant for sums in by_label.values()):  # no reference labels: all rows are meant
        by_label = {label: _LabelSums(sums.others, sums.others_score) for label, sums in by_label.items()}
    rows = sum(sums.meant for sums in by_label.values())
    by_frequency = sorted(by_label.items(), key=lambda item: (-item[1].meant, -item[1].others, item[0]))
    labels = [
        LabelShare(
            label, sums.meant, sums.meant / rows, sums.meant_score / sums.meant if sums.meant else None, sums.others
        )
        for label, sums in by_frequency[:LABELS_SHOWN]
    ]
    return TaskLabels(task, rows, sum(sums.others for sums in by_label.values()), labels)


def _sum_labels(run: Run, files: Sequence[DataFile]) -> dict[str, dict[str, _LabelSums]]:
    """The sums by task and label."""
    of_others = labels_of_others(run, files)
    sums: dict[str, dict[str, _LabelSums]] = defaultdict(lambda: defaultdict(_LabelSums))
    columns = ["task", "label", "score", "reference_label"]
    for rows in rebatch(scan_batches(run.uri, "labels", [file.path for file in files], columns)):
        groups = rows.group_by(["task", "label", "reference_label"]).aggregate([([], "count_all"), ("score", "sum")])
        for group in groups.to_pylist():
            each, reference = sums[group["task"]][group["label"]], group["reference_label"]
            if reference is None or reference in of_others.get(group["task"], ()):
                each.others += group["count_all"]
                each.others_score += group["score_sum"]
            else:
                each.meant += group["count_all"]
                each.meant_score += group["score_sum"]
    return sums


def _tag_tables(rows: pa.Table, failed: pa.Table) -> list[TagTable]:
    """Tags with few values (a language, a channel, a source), of the sampled rows."""
    values_by_tag: dict[str, set[str]] = {}
    for text in pc.unique(rows["tags"]).drop_null().to_pylist():
        for tag, value in json.loads(text).items():
            values_by_tag.setdefault(tag, set()).add(json.dumps(value))
    return [_tag_table(tag, rows, failed) for tag, values in sorted(values_by_tag.items()) if len(values) <= TAG_VALUES]


def _tag_table(tag: str, rows: pa.Table, failed: pa.Table) -> TagTable:
    keys = grouping_key(f"tags.{tag}").keys_of
    table = pa.table({"value": keys(rows), "duration_s": rows["duration_s"]})
    sums = table.group_by("value").aggregate([([], "count_all"), ("duration_s", "sum")]).to_pylist()
    failures = Counter(keys(failed).to_pylist())
    values = [
        TagValue(
            value=group["value"],
            utterances=group["count_all"],
            hours=(group["duration_s_sum"] or 0.0) / 3600,
            failed=failures[group["value"]],
        )
        for group in sorted(sums, key=lambda group: -group["count_all"])
    ]
    return TagTable(tag, values)


def describe_errors(run: Run, failed: int) -> list[ErrorsByCode]:
    """The failed utterances by error code, the most frequent first, with examples and messages.

    Codes are counted over all rows. Examples and messages come from a sample where there are very many.

    Args:
        run: the run.
        failed: number of its failed utterances.
    """
    if not failed:
        return []
    sample, _ = sampled_rows(run, "errors", ["utt_id", "uri", "code", "message"], CORPUS_SAMPLED)
    codes = run.read(lambda files: _count_codes(run, files["errors"]))
    by_code = []
    for code, count in sorted(codes.items(), key=lambda item: (-item[1], item[0])):
        rows = sample.filter(pc.equal(sample["code"], code))
        examples = rows.slice(0, EXAMPLES).select(["utt_id", "uri", "message"]).to_pylist()
        shown = [FailedUtterance(**row | {"uri": without_secrets(row["uri"])}) for row in examples]
        by_code.append(ErrorsByCode(code, count, count / failed, shown, _messages(rows)))
    return by_code


def _messages(rows: pa.Table) -> list[ErrorMessage]:
    """The most frequent messages. Their numbers are masked, so that messages which differ in a position are one."""
    messages = Counter(re.sub(r"\d+(\.\d+)?", "#", message) for message in rows["message"].to_pylist())
    return [ErrorMessage(message, count) for message, count in messages.most_common(EXAMPLES)]


def _count_codes(run: Run, files: Sequence[DataFile]) -> Counter[str]:
    """Failed rows by code."""
    counts: Counter[str] = Counter()
    for batch in scan_batches(run.uri, "errors", [file.path for file in files], ["code"]):
        values: list[dict[str, Any]] = pc.value_counts(batch["code"]).to_pylist()
        counts.update({value["values"]: value["counts"] for value in values})
    return counts
