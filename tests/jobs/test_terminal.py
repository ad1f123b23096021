"""Names and texts of a corpus cannot command the terminal, and secrets do not get as far as a verb."""

from __future__ import annotations

import io
import json
import logging

import pytest

from jobs import console, logs
from jobs.status import status
from jobs.verbs import SUBMITTABLE
from tests.support import runs
from tests.support.command import sewd_in_process

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\x00red"
CONTROLS = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n"}
PASSWORD = "hush-hush-hush"


def test_warnings_and_the_log_hold_no_control_characters(tmp_path, monkeypatch, capsys):
    file = io.StringIO()
    monkeypatch.setattr(logs, "err", console._Console(file=file, highlight=False, soft_wrap=True, width=200))
    logs.log_to(tmp_path / "log.jsonl")
    try:
        logging.getLogger("sewd").warning("failed: %s\n{}", HOSTILE)
    finally:
        logs.log_to(None)
    line = (tmp_path / "log.jsonl").read_text().removesuffix("\n")
    for written in (file.getvalue(), line):
        assert not CONTROLS & set(written)
    assert json.loads(line)["event"] == f"failed: {HOSTILE}\n{{}}", "one line, and nothing is lost"


def test_figures_by_speaker_have_no_control_characters_of_names(tmp_path):
    runs.write_run(tmp_path / "run", runs.transcripts([{"text": "a", "reference": "a", "speaker": HOSTILE}]))
    done = sewd_in_process("evaluate", tmp_path / "run", "--by", "speaker")
    assert done.returncode == 0
    assert "\ufffd[2J" in done.stdout
    assert not CONTROLS & set(done.stdout + done.stderr)


def test_an_error_about_a_name_is_one_line_without_control_characters(tmp_path):
    done = sewd_in_process("status", tmp_path / HOSTILE.replace("\x00", ""))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not CONTROLS & set(done.stdout + done.stderr)


@pytest.mark.parametrize("verb", [*SUBMITTABLE, "submit"])
def test_a_password_in_a_uri_is_refused_before_anything_is_done(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sewd_in_process(verb, f"ftp://user:{PASSWORD}@host/run", "--output", "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "argument 2 looks like it contains a secret" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_is_refused_too_where_a_verb_is_run_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["status", f"memory://user:{PASSWORD}@host/run"])
    with pytest.raises(SystemExit) as ended:
        console.single(status)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "argument 1 looks like it contains a secret" in printed.err
    assert PASSWORD not in printed.out + printed.err
