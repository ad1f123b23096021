"""Bad recordings, rows, shards and tables in every layout and container: one error row each, in one run."""

from __future__ import annotations

import collections
import os
import uuid

import psutil

from tests.support import corpora
from tests.support.command import sewd
from tests.support.hostile_layouts import write_corpus

MARK = "SEWD_TEST_MARK"


def processes_of(mark: str) -> list[str]:
    """Command lines of the processes that inherited a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_each_bad_file_and_row_of_every_layout_is_one_error_row_and_no_process_is_left(tmp_path, small_ctc):
    corpus = write_corpus(tmp_path / "corpus")
    assert len(corpus.bad) >= 200
    mark = uuid.uuid4().hex

    done = sewd(
        *("transcribe", *corpus.inputs, "--output", tmp_path / "run", "--model", small_ctc),
        *("--max-error-rate", 1, "--threads", 1),
        environment={MARK: mark},
    )

    assert done.returncode == 3, done.stderr
    assert processes_of(mark) == []
    transcripts, errors = corpora.rows_of(tmp_path / "run"), corpora.rows_of(tmp_path / "run", "errors")
    times = collections.Counter(row["utt_id"] for row in [*transcripts, *errors])
    assert {utt_id: count for utt_id, count in times.items() if count > 1} == {}
    assert {row["utt_id"] for row in transcripts} == corpus.good
    assert {row["utt_id"] for row in errors} == corpus.bad.keys()
    wrong = {r["utt_id"]: (r["code"], r["message"]) for r in errors if r["code"] not in corpus.bad[r["utt_id"]]}
    assert wrong == {}
    assert all(row["message"] for row in errors)
    assert not os.path.lexists("run"), "a command of wav.scp was run"
