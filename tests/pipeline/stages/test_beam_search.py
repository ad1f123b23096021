"""A run with a beam search: its record, its rows, and a recogniser in this process that gives the same."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ctc_beam_decoder")
pytest.importorskip("duckdb")

import pipeline
from pipeline import Recognizer, RunConfig, UsageError
from pipeline.config import make_config
from pipeline.decoding.decoder import load_decoder
from pipeline.decoding.settings import requested
from pipeline.language_models.build import build
from pipeline.storage import checkpoints, files, uris
from tests.pipeline.decoding.test_beam import ACOUSTICS
from tests.support.language_models import write_tiny
from tests.support.without_ray import without_ray

DEMO = Path(__file__).parents[3] / "jobs" / "demo_corpus" / "audio"
SENTENCES = ("a large espresso with sugar", "three small lattes please", "computer", "one two three four")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    for name in ("order-0.wav", "order-1.flac", "call.flac"):
        shutil.copy(DEMO / name, folder / name)
    build(SENTENCES, folder / "lm.arpa", 2)
    (folder / "hot.txt").write_text("latte\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def config(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    names = [str(inputs / name) for name in ("order-0.wav", "order-1.flac", "call.flac")]
    return RunConfig(
        tuple(names),
        str(output),
        lm=str(inputs / "lm.arpa"),
        hotwords=str(inputs / "hot.txt"),
        beam=8,
        nbest=3,
        lm_weight=2.0,
        max_segment_s=8,
    )


@pytest.fixture(scope="module")
def run(config):
    with without_ray():
        return pipeline.transcribe(config)


def test_a_run_keeps_the_n_best_and_names_its_settings(run, config):
    assert run.status == "done"
    rows = run.to_arrow().to_pylist()
    assert all(1 <= len(row["nbest"]) <= 3 for row in rows)
    assert any(len(row["nbest"]) == 3 for row in rows)
    for row in rows:
        scores = [item["acoustic"] + item["language"] for item in row["nbest"]]
        assert scores == sorted(scores, reverse=True)
    stored = json.loads(Path(run.uri, "run.json").read_text())["fingerprint"]
    assert stored["lm"] == files.file_digest(config.lm)
    assert (stored["beam"], stored["nbest"], stored["lm_weight"]) == (8, 3, 2.0)
    assert not run.files()["posteriors"]


def test_a_recognizer_gives_the_same(config, inputs, tmp_path):
    with without_ray():
        run = pipeline.transcribe(dataclasses.replace(config, nbest=1, output=str(tmp_path / "run")))
    options = {name: getattr(config, name) for name in ("lm", "hotwords", "beam", "lm_weight", "max_segment_s")}
    recognizer = Recognizer.from_pretrained("bundled", **options)
    for path, result in zip(config.inputs, recognizer.transcribe(list(config.inputs)), strict=True):
        expected = sorted((row for row in run.to_arrow().to_pylist() if row["uri"] == path), key=lambda r: r["start_s"])
        assert [segment.text for segment in result.segments] == [row["text"] for row in expected]
        assert [[dataclasses.asdict(word) for word in segment.words] for segment in result.segments] == [
            [{**word, "confidence": pytest.approx(word["confidence"], rel=1e-3)} for word in row["words"]]
            for row in expected
        ]


def test_a_run_is_not_resumed_with_another_language_model_or_without(run, config, inputs):
    build([*SENTENCES, "another"], inputs / "other.arpa", 2)
    for other in (
        dataclasses.replace(config, lm=str(inputs / "other.arpa")),
        dataclasses.replace(config, lm=None),
        dataclasses.replace(config, hotword_weight=1.0),
    ):
        with without_ray(), pytest.raises(UsageError, match=r"lm: |hotword_weight: "):
            pipeline.transcribe(other)
    with without_ray():
        assert pipeline.transcribe(config).status == "done"


def test_what_is_wrong_is_said_before_there_is_a_run(config, inputs, tmp_path):
    (inputs / "broken.arpa").write_text("no model")
    (inputs / "foreign.txt").write_text("über\n", "utf-8")
    for wrong, message in (
        ({"lm": str(inputs / "broken.arpa")}, "lm: "),
        ({"lm": str(inputs / "missing.arpa")}, "lm: there is no file"),
        ({"hotwords": str(inputs / "foreign.txt")}, "hotwords: 'über' cannot be spelled"),
        ({"beam": 1}, "beam: 1 is greedy"),
        ({"nbest": 9}, "nbest: 9 are more"),
        ({"beam": 0}, "beam: "),
        ({"lm_weight": -1.0}, "lm-weight: "),
    ):
        with without_ray(), pytest.raises(UsageError, match=message):
            pipeline.transcribe(make_config(**{**_values(config), "output": str(tmp_path / "run"), **wrong}))
    assert not (tmp_path / "run").exists()


def _values(config):
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def test_a_language_model_in_a_store_is_copied_once(config, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "COPIES", tmp_path / "copies")
    uri = f"memory://models/{os.getpid()}/lm.arpa"
    fs, path = uris.filesystem(uri)
    fs.pipe_file(path, (inputs / "lm.arpa").read_bytes())
    digest = files.file_digest(uri)
    local = files.local_file(uri, digest, tmp_path / "copies")
    assert Path(local).read_bytes() == (inputs / "lm.arpa").read_bytes()
    fs.pipe_file(path, b"another")
    assert files.local_file(uri, digest, tmp_path / "copies") == local
    with pytest.raises(pipeline.StorageError, match="is not the file that the run was started with"):
        files.local_file(uri, "0" * 64, tmp_path / "copies")
    assert [p.name for p in (tmp_path / "copies").iterdir() if "partial" in p.name] == []
    fs.rm(path)
    with pytest.raises(pipeline.StorageError, match=r"lm\.arpa is gone"):
        files.local_file(uri, "1" * 64, tmp_path / "copies")


def test_a_language_model_that_is_replaced_or_lost_meanwhile_is_not_used(tmp_path):
    path = tmp_path / "lm.arpa"
    chosen = requested(lm=write_tiny(path))
    assert load_decoder(chosen, ACOUSTICS)
    path.write_text(path.read_text("utf-8").replace("-0.9", "-0.8"), "utf-8")
    with pytest.raises(pipeline.StorageError, match="is not the file that the run was started with"):
        load_decoder(chosen, ACOUSTICS)
    path.unlink()
    with pytest.raises(pipeline.StorageError, match=r"lm\.arpa is gone"):
        load_decoder(chosen, ACOUSTICS)


def test_a_search_that_hangs_ends_its_process_at_the_deadline(inputs):
    script = """
import time, types
from tests.pipeline.decoding.test_beam import ACOUSTICS, clip_of, AB
from pipeline.decoding.settings import DecoderSettings
from pipeline.stages import texts
texts.loaded_decoder = lambda *_: types.SimpleNamespace(decode=lambda _: time.sleep(60))
texts.posteriors_of = lambda rows: [clip_of(AB, ["a"])]
settings = texts.TextSettings(
    acoustics=ACOUSTICS,
    decoder=DecoderSettings(beam=2),
    word_gap_s=0.5,
    extend_words=True,
    normalizer="basic",
    classifiers=(),
    deadline_s=0.2,
)
texts._decoded(types.SimpleNamespace(num_rows=1), settings)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, check=False, timeout=50)
    assert done.returncode == -signal.SIGALRM, done.stderr
