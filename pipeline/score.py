"""Evaluation of a run on storage: its committed rows in, metrics beside them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.evaluate import Evaluation, evaluate, metrics_table, required_columns
from pipeline.run import Run


def evaluate_run(run: Run, normalizer: str | None = None) -> Evaluation:
    """Corpus figures over what is committed, also of a run that is not done.

    Args:
        run: the run.
        normalizer: the one to score under; None: the run's own, whose counts are stored.

    Raises:
        UsageError: no such normalizer.
    """
    stored = run.record["config"]["normalizer"]
    wanted = normalizer or stored
    columns = list(required_columns(wanted, stored))
    failed = sum(commit.errors for commit in run.commits())
    batches = run.dataset("transcripts").to_batches(columns=columns)
    return evaluate(batches, failed, normalizer=wanted, stored_normalizer=stored)


def write_metrics(run: Run, evaluation: Evaluation) -> str:
    """Put the figures under `metrics/`, one file a normalizer, and give its URI."""
    sink = pa.BufferOutputStream()
    pq.write_table(metrics_table(evaluation), sink)
    uri = storage.join(run.uri, "metrics", f"corpus-{evaluation.normalizer}.parquet")
    storage.put(uri, sink.getvalue().to_pybytes())
    return uri
