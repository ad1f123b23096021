"""Weights of a language model: the errors are those of a run with these weights, and the honest figure is honest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ctc_beam_decoder")
pytest.importorskip("duckdb")

import pipeline
from pipeline import RunConfig, UsageError
from pipeline.decoding.settings import requested
from pipeline.evaluation import decoder_weights
from pipeline.evaluation.decoder_weights import tune
from pipeline.language_models.build import build
from tests.support.without_ray import without_ray

DEMO = Path(__file__).parents[3] / "jobs" / "demo_corpus" / "audio"
TEXTS = {"order-0.wav": "could i have a large espresso", "order-1.flac": "three lattes", "order-3.ogg": None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        {"audio_filepath": str(DEMO / name), "speaker": name, **({"text": text} if text else {})}
        for name, text in TEXTS.items()
    ]
    (folder / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    build(["could i have a large espresso", "three lattes"], folder / "lm.arpa", 2)
    return folder


@pytest.fixture(scope="module")
def config(corpus):
    return RunConfig((str(corpus / "m.jsonl"),), str(corpus / "run"), keep_posteriors=True)


@pytest.fixture(scope="module")
def run(config):
    with without_ray():
        return pipeline.transcribe(config)


def test_errors_are_those_of_runs_with_the_same_weights(run, config, corpus):
    lm = str(corpus / "lm.arpa")
    found = tune(run, requested(lm=lm, beam=8), weights=(0.5, 3.0), bonuses=(1.0,))
    assert (found.utterances, found.words, found.by_speaker, found.folds) == (2, 8, True, 2)
    for weight in (0.5, 3.0):
        other = dataclasses.replace(config, output=str(corpus / f"run-{weight}"), lm=lm, beam=8, lm_weight=weight)
        with without_ray():
            made = pipeline.transcribe(dataclasses.replace(other, word_bonus=1.0))
        assert found.errors[weight, 1.0] == pipeline.evaluate_run(made).figures.counts["wer"].errors
    assert found.greedy == pipeline.evaluate_run(run).figures.counts["wer"].errors
    assert found.errors[found.best] == min(found.errors.values())
    assert decoder_weights.draw(found).startswith(b"\x89PNG")


def test_less_audio_is_drawn_by_ids(run, corpus):
    found = tune(run, requested(lm=str(corpus / "lm.arpa")), (1.0,), (0.0,), limit_s=0.1)
    assert (found.utterances, found.cross_validated) == (1, None)


def test_each_fold_has_the_weights_that_are_best_on_the_others():
    errors = np.array([[0, 5, 5, 0], [4, 1, 1, 4], [3, 3, 3, 3]])  # (weights, utterances)
    # fold 0 is decoded with what is best on fold 1: 5, 5 and 6 errors, so the first weights; and the other way round
    assert decoder_weights._cross_validated(errors, np.array([0, 0, 1, 1])) == 0 + 5 + 5 + 0
    rng = np.random.default_rng(0)
    noise = rng.poisson(2.0, (20, 200))
    chosen = int(noise.sum(axis=1).min())
    assert decoder_weights._cross_validated(noise, np.arange(200) % 5) > chosen


def test_what_cannot_be_tuned(run, corpus, tmp_path):
    with pytest.raises(UsageError, match="add --lm"):
        tune(run, requested(beam=4))
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": str(DEMO / "order-0.wav")}), "utf-8")
    with without_ray():
        other = pipeline.transcribe(
            RunConfig((str(tmp_path / "m.jsonl"),), str(tmp_path / "run"), keep_posteriors=True)
        )
        plain = pipeline.transcribe(RunConfig((str(tmp_path / "m.jsonl"),), str(tmp_path / "plain")))
    lm = requested(lm=str(corpus / "lm.arpa"))
    with pytest.raises(UsageError, match=r"no utterance of .* has a reference"):
        tune(other, lm)
    with pytest.raises(UsageError, match="keep-posteriors"):
        tune(plain, lm)
    with without_ray():
        row = {"audio_filepath": str(DEMO / "order-0.wav"), "text": "..."}
        (tmp_path / "m.jsonl").write_text(json.dumps(row), "utf-8")
        wordless = pipeline.transcribe(
            RunConfig((str(tmp_path / "m.jsonl"),), str(tmp_path / "wordless"), keep_posteriors=True)
        )
    with pytest.raises(UsageError, match=r"the references of .* have no words"):
        tune(wordless, lm)
