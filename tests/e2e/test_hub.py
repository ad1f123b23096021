"""A run by the name of a private model, on real Ray: downloaded once for all processes, and its token seen nowhere."""

from __future__ import annotations

import os
import sys

from pipeline.runs.run import Run
from tests.support import corpora
from tests.support.command import sewd, sewd_in_process
from tests.support.hub import model_hub

NAME = "org/sew-d"
TOKEN = "hf_CanaryCanaryCanary"


def test_a_private_model_is_downloaded_once_and_its_token_is_seen_nowhere(tmp_path, monkeypatch, small_ctc):
    for index in range(3):
        corpora.write_audio(tmp_path / f"corpus/{index}.wav", 0.8, seed=index)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    with model_hub(tmp_path / "cache", token=TOKEN) as hub:
        commit = hub.publish(NAME, small_ctc)
        done = sewd("transcribe", "corpus", "-o", "run", "--model", NAME, "--log", "log.jsonl", "--actors", "2")
        assert done.returncode == 0, done.stderr
        fetched = [request for request in hub.requests() if request.startswith(("GET /org", "GET /models"))]
        assert len(fetched) == len(set(fetched)) == 5
        assert hub.server.leaks == []
        refused = sewd_in_process("transcribe", "corpus", "-o", "other", "--model", "org/none")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has no model org/none (404)" in refused.stderr
    assert Run.open("run").record.commits == {f"hf://{NAME}": commit}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)
    assert TOKEN not in done.stdout + done.stderr + refused.stderr
