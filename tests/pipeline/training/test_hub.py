"""A training that starts from a checkpoint on the hub: the commit is looked up once, recorded, and kept."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pipeline.errors import UsageError
from pipeline.training.loop import SETTINGS_FILE, check_settings, train
from pipeline.training.ray_train import _pinned
from pipeline.training.settings import make_data_settings, make_settings
from sewd_model import SEWDForCTC
from tests.support.hub import model_hub
from tests.support.tones import write_corpus

NAME = "org/ctc"


def test_a_resume_keeps_the_commit_when_the_branch_has_moved(tmp_path, monkeypatch, small_ctc, small_classifier):
    corpus = write_corpus(tmp_path / "tones")
    monkeypatch.chdir(tmp_path)
    wanted = make_settings(
        train=((str(corpus), 1.0),),
        output=str(tmp_path / "training"),
        init=NAME,
        steps=2,
        checkpoint_every=1,
        learning_rate=1e-6,
        data=make_data_settings(batch_s=12.0),
        threads=1,
    )
    with model_hub(tmp_path / "cache") as hub:
        first = hub.publish(NAME, small_ctc)
        settings = _pinned(wanted)
        assert (settings.init, settings.init_commit) == (f"hf://{NAME}", first)
        assert settings.start == f"hf://{NAME}@{first}"
        assert not train(dataclasses.replace(settings, stop_after_s=0.0), report=lambda _: None)["finished"]
        hub.publish(NAME, small_classifier, "main", "v2")
        hub.requests()
        settings = _pinned(wanted)
        assert settings.init_commit == first
        assert train(settings, report=lambda _: None)["finished"]
        assert hub.requests() == []
        with pytest.raises(UsageError, match="holds a training with other init"):
            check_settings(_pinned(dataclasses.replace(wanted, init=f"{NAME}@v2")))
    stored = tmp_path / "training" / SETTINGS_FILE
    recorded = json.loads(stored.read_text())
    assert (recorded["init"], recorded["init_commit"]) == (f"hf://{NAME}", first)
    # A training of version 0.1.0 has no commit in its settings.
    stored.write_text(json.dumps({key: value for key, value in recorded.items() if key != "init_commit"}))
    check_settings(settings)
    stored.write_text(json.dumps(recorded | {"init_commit": "0" * 40}))
    with pytest.raises(UsageError, match="holds a training with other init_commit"):
        check_settings(settings)
    before, after = (SEWDForCTC.from_pretrained(folder) for folder in (small_ctc, tmp_path / "training/model"))
    assert (before.lm_head.weight - after.lm_head.weight).abs().max() < 1e-4
