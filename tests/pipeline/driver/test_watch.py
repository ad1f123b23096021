"""`watch`: rounds, what ends it, and what is tried again. What a round does is in tests/e2e/test_update.py."""

from __future__ import annotations

import signal
import subprocess
import threading

import pytest

import pipeline
from jobs import watch as verb
from pipeline.config import make_config
from pipeline.driver import watch as driver
from pipeline.errors import InputChangedError, InputsError, RunBusyError, RunFailedError, StorageError, UsageError
from pipeline.runs.changes import CorpusChanges
from tests.support import corpora, runs
from tests.support.command import command, sewd_in_process

CONFIG = make_config(inputs=("in",), output="out", model="m")


def watched(monkeypatch, outcomes, stop=None):
    """The rounds of a watch, each of which does or raises what is next in `outcomes`; the last one stops it."""
    stop = stop or threading.Event()
    rounds, configs = [], []

    def transcribe(config, stop, on_changes):
        configs.append(config)
        outcome = outcomes[len(configs) - 1]
        if len(configs) == len(outcomes):
            stop.set()
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, CorpusChanges):
            on_changes(outcome)
        return "run"

    monkeypatch.setattr(driver, "transcribe", transcribe)
    driver.watch(CONFIG, 0.01, stop, rounds.append, first_retry_s=0.001)
    return rounds, configs


def test_each_round_updates_the_run_and_is_reported(monkeypatch):
    changes = CorpusChanges(added=("a",))
    rounds, configs = watched(monkeypatch, [None, changes, None])
    assert [(done.number, done.run, done.changes) for done in rounds] == [
        (1, "run", CorpusChanges()),
        (2, "run", changes),
        (3, "run", CorpusChanges()),
    ]
    assert {config.existing for config in configs} == {"update"}


@pytest.mark.parametrize("error", [StorageError, InputChangedError, InputsError, RunBusyError])
def test_what_may_pass_is_tried_again_with_growing_waits(monkeypatch, error):
    rounds, _ = watched(monkeypatch, [None, *[error("why")] * 6, None, error("why"), None])
    assert [done.retry_s for done in rounds] == [0, 0.001, 0.002, 0.004, 0.008, 0.01, 0.01, 0, 0.001, 0]
    assert [done.problem for done in rounds] == [None, *["why"] * 6, None, "why", None]


def test_a_storage_that_is_gone_for_weeks_is_still_tried_again(monkeypatch):
    rounds, _ = watched(monkeypatch, [None, *[StorageError("why")] * 1_100, None])
    assert [done.retry_s for done in rounds[-3:]] == [0.01, 0.01, 0]


@pytest.mark.parametrize("error", [StorageError, InputsError, RunBusyError])
def test_the_first_round_shows_what_is_wrong_with_the_command(monkeypatch, error):
    with pytest.raises(error):
        watched(monkeypatch, [error("why"), None])


@pytest.mark.parametrize("error", [UsageError, RunFailedError])
def test_what_does_not_pass_ends_it(monkeypatch, error):
    with pytest.raises(error):
        watched(monkeypatch, [None, error("why"), None])


def test_a_stop_ends_the_wait_between_rounds(monkeypatch):
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    monkeypatch.setattr(driver, "transcribe", lambda config, stop, on_changes: "run")
    rounds = []
    driver.watch(CONFIG, 3600, stop, rounds.append)
    assert len(rounds) == 1


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172_800)])
def test_times_are_parsed(text, expected):
    assert verb.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "0s", "1w", "10m\n", "1 m"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="is not a time such as"):
        verb.seconds(text)


def test_the_command_line_refuses_what_it_cannot_do(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"x")
    refused = sewd_in_process("watch", tmp_path / "a.wav", "--output", tmp_path / "run", "--every", "soon")
    assert (refused.returncode, refused.stderr.strip()) == (
        2,
        "sewd: every: 'soon' is not a time such as 90s, 10m or 1h",
    )
    assert sewd_in_process("watch", tmp_path, "--output", tmp_path / "run", "--overwrite").returncode == 2


def test_the_command_line_reads_a_table_of_another_ending_as_the_format_says(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("path\n")
    configs = []
    monkeypatch.setattr(driver, "watch", lambda config, *_: configs.append(config))
    arguments = ("watch", tmp_path / "list.txt", "--output", tmp_path / "run")
    assert "list.txt" in sewd_in_process(*arguments).stderr
    assert configs == []
    watched = sewd_in_process(*arguments, "--input-format", "csv")
    assert watched.stderr == ""
    assert [config.input_format for config in configs] == ["csv"]


def test_a_round_is_one_line(tmp_path, capsys):
    run = runs.write_run(tmp_path / "run", runs.transcripts([{"text": "a"}]), errors=runs.errors([{}]))
    verb._print(driver.Round(7, run, CorpusChanges(added=("a.wav",), removed=("b.wav", "c.wav"))))
    verb._print(driver.Round(8, problem="no\nanswer", retry_s=20))
    printed = capsys.readouterr()
    assert printed.out.endswith(
        "round 7: 1 added (a.wav), 2 removed (b.wav, c.wav); 1 transcripts of 2.0 s audio, 1 failed\n"
    )
    assert printed.err.endswith("round 8: no answer; next try in 20 s\n")


@pytest.mark.slow
def test_a_watch_follows_its_input_and_stops_on_a_signal(tmp_path, small_ctc):
    corpora.write_audio(tmp_path / "in/a.wav", 1.0, 1)
    arguments = command("watch", tmp_path / "in", "--output", tmp_path / "run", "--model", small_ctc, "--every", "1s")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert "first round; 1 transcripts" in process.stdout.readline()
    corpora.write_audio(tmp_path / "in/b.wav", 1.0, 2)
    (tmp_path / "in/a.wav").unlink()
    line = next(line for line in process.stdout if "nothing has changed" not in line)
    assert "1 added" in line
    assert "1 removed" in line
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    run = pipeline.Run.open(tmp_path / "run")
    assert (run.status, [row["utt_id"] for row in corpora.rows_of(run)]) == ("done", ["b"])
