"""`sewd lm build` and `sewd lm tune` on the command line."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

pytest.importorskip("duckdb")
pytest.importorskip("ctc_beam_decoder")

from pipeline.language_models.words import words_of
from tests.support.command import sewd_in_process
from tests.support.posteriors import spoken_run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Hello big world\nhello world.\n", "utf-8")
    return path


def test_build_writes_a_model_of_the_normalised_words(text, tmp_path):
    done = sewd_in_process("lm", "build", text, "--output", tmp_path / "lm.arpa.gz")
    assert done.returncode == 0, done.stderr
    assert "2 sentences, 5 words" in done.stdout
    assert sorted(words_of(str(tmp_path / "lm.arpa.gz"))) == ["big", "hello", "world"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "."), "output: "),
        (("--output", "x.arpa", "--prune", "a"), "prune: 'a' are not counts"),
        (("--output", "x.arpa", "--memory", "1.2.3GB"), "memory: '1.2.3GB' is no size"),
        (("--output", "x.arpa", "--order", "1"), "order: must be from 2 to 6"),
    ],
)
def test_what_cannot_be_built(text, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sewd_in_process("lm", "build", text, *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sewd: {message}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [text.name]


def test_a_build_that_is_ended_leaves_no_temporary_files(text, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def ended(*_):
        assert list((tmp_path / "temporary").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("jobs.lm.build_model", ended)
    before = signal.getsignal(signal.SIGTERM)
    done = sewd_in_process("lm", "build", text, "--output", tmp_path / "lm.arpa")
    assert done.returncode == 128 + signal.SIGTERM
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "lm.arpa").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_weights_that_cannot_be_tried(text, tmp_path):
    lm = tmp_path / "lm.arpa"
    sewd_in_process("lm", "build", text, "--output", lm)
    run = spoken_run(tmp_path / "run", [{"spoken": "hello", "reference": "hello"}])
    for options, message in (
        (("--weights", "nan"), "weights: 'nan' are not all from 0 to 100"),
        (("--bonuses", "0 1e9"), "bonuses: '0 1e9' are not all from -100 to 100"),
        (("--weights", "x"), "weights: 'x' are not numbers"),
        (("--weights", ""), "lm tune: there are no weights"),
    ):
        done = sewd_in_process("lm", "tune", run.uri, "--lm", lm, *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(f"sewd: {message}")
