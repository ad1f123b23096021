"""`sewd demo`, as `make demo` runs it: its results on its own corpus, and the paths that it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.main", "demo", "--output", "run"],
        check=False,
        cwd=directory,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "run", done.stdout


def test_it_transcribes_its_corpus_with_few_errors(demo):
    run, printed = demo
    (wer,) = re.findall(r"WER +([\d.]+) ?%", printed)
    assert float(wer) <= 8.0
    rows = pq.read_table(run / "transcripts").to_pylist()
    errors = sum(row["substitutions"] + row["deletions"] + row["insertions"] for row in rows if row["reference"])
    words = sum(row["ref_words"] for row in rows if row["reference"])
    assert 100 * errors / words == pytest.approx(float(wer), abs=0.06)
    assert sum(row["duration_s"] for row in rows) > 300
    assert len({row["speaker"] for row in rows} - {None}) == 4


def test_it_classifies_the_keywords(demo):
    run, _ = demo
    rows = [row for row in pq.read_table(run / "labels").to_pylist() if row["reference_label"]]
    assert len(rows) == 24
    assert sum(row["label"] == row["reference_label"] for row in rows) >= 22


def test_the_two_broken_files_become_error_rows(demo):
    run, printed = demo
    rows = pq.read_table(run / "errors").to_pylist()
    assert sorted(row["code"] for row in rows) == ["TRUNCATED", "UNDECODABLE"]
    assert "run/errors/*.parquet" in printed
    assert (run / "report.html").stat().st_size > 10_000
